"""Pictures show the numbers that they are given, and leave matplotlib's settings as they are."""

import matplotlib
import numpy as np
import pytest
from toy import rows

from tinyprune.experiments import pictures
from tinyprune.experiments.results import SPLITS, summarise


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def test_the_tradeoff_shows_means_and_spreads_of_every_method():
    more = [
        {"method": m, "reference": "random", "heads_open": h, "difference": d, "high": d + 0.1}
        for m, d in (("magnitude", 0.1), ("gates", -0.3))
        for h in (2, 3)
    ]
    both = [r | {"split": split} for r in rows() for split in SPLITS]
    figure = pictures.plot_tradeoff(summarise(both), more)
    whole, difference = figure.axes
    drawn = {c.get_label(): c for c in whole.containers}
    assert list(drawn) == ["random", "magnitude", "gates"]
    for method, first in (("random", 2.5), ("magnitude", 2.6), ("gates", 2.2)):
        line, _, (bars,) = drawn[method]
        np.testing.assert_allclose(line.get_xdata(), [2, 3], atol=0.4)
        np.testing.assert_allclose(line.get_ydata(), [first + 0.05 + 1 / 2, first + 0.05 + 1 / 3])
        half = np.diff([s[:, 1] for s in bars.get_segments()])[:, 0] / 2
        np.testing.assert_allclose(half, np.std([0.0, 0.1], ddof=1))
    np.testing.assert_allclose(difference.containers[-1][0].get_ydata(), [-0.3, -0.3])
    assert len(difference.containers) == 2  # random against itself is the line at 0
    figure.draw_without_rendering()
    alone = [r for r in both if r["seed"] == 0 and r["method"] == "gates"]
    pictures.plot_tradeoff(summarise(alone), []).draw_without_rendering()
