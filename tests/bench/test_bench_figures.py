"""Pictures of benchmarks show every record, and everybody can tell the contenders apart."""

import itertools

import numpy as np
from test_plots import readable

from tinyprune.bench.figures import plot_benchmark

SUBJECTS = ["tinyprune (numba)", "torch plain", "torch sdpa", "torch.compile (sdpa)"]


def speed_records(shapes: int = 3) -> list[dict]:
    records = []
    for s, i in itertools.product(range(shapes), range(len(SUBJECTS))):
        ms = 10.0 * (s + 1) * (i + 1)
        record = {"benchmark": "step", "shape": f"shape {s}", "subject": SUBJECTS[i], "median_ms": ms}
        record |= {"ratio_to_subject": None if (s, i) == (1, 1) else i + 1.0, "gflops": 1e3 / ms}
        records.append(record)
    return records


def test_speeds():
    figure = plot_benchmark(speed_records())
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shape 0", "shape 1", "shape 2"]
    assert [line.get_label() for line in axes.lines] == SUBJECTS
    for i, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_xdata(), [100 / ((s + 1) * (i + 1)) for s in range(3)])
        assert list(line.get_ydata()) == [0, 1, 2]
    # The ratio that was void is not written.
    assert sorted(t.get_text() for t in axes.texts) == sorted(["2×"] * 2 + ["3×"] * 3 + ["4×"] * 3)
    assert len({line.get_marker() for line in axes.lines}) == len(SUBJECTS)
    for shapes in (3, 1, 54):
        readable(plot_benchmark(speed_records(shapes=shapes)))
