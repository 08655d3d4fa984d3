"""The trade-off: its cells, rank correlations by hand, and pictures that show the numbers that they are given."""

import matplotlib
import numpy as np
import pytest
from small import small_config, small_model
from toy import rows, toy_plan, whole_study

from tinyprune.experiments.cells import METHODS
from tinyprune.experiments.drawing import look
from tinyprune.experiments.plan import Finished
from tinyprune.experiments.results import read_csv, spread
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import tradeoff
from tinyprune.plots import GREY


def test_it_ends_with_tables_and_pictures(tmp_path, monkeypatch, capsys):
    """Agreement is the mean over seeds. Without the baseline's weights only the picture of attention is missing."""
    plan = toy_plan(tmp_path, methods=("random", "magnitude", "gates"))
    entries = tradeoff.STUDY.entries(plan)
    assert len(entries) == 2 * (2 + 3)  # seeds · (baseline, unpruned, methods)
    files, pictures = whole_study("tradeoff", plan, tmp_path, monkeypatch)
    assert pictures == {"tradeoff", "kept", "agreement", "gate_paths", "attention"}
    assert {r["reference"] for r in read_csv(files["comparison.csv"])} == {"gates"}
    table = {(r["method"], r["other"]): r["rank_correlation"] for r in read_csv(files["agreement.csv"])}
    assert len(table) == 9 and all(table[m, m] == pytest.approx(1) for m in ("random", "magnitude", "gates"))
    store = Store(tmp_path / "tradeoff")
    scores = {(e.method, e.seed): np.ravel(store.record(e.cell).get("scores")) for e in entries if e.target_share}
    expected = np.mean([tradeoff.rank_correlation(scores["random", s], scores["gates", s]) for s in (0, 1)])
    assert table["random", "gates"] == table["gates", "random"] == pytest.approx(expected, abs=1e-5)

    for path in (tmp_path / "tradeoff" / "baselines").iterdir():
        path.unlink()
    capsys.readouterr()
    done = Finished(entries, store, 27, {name: read_csv(files[f"{name}.csv"]) for name in ("results", "agreement")})
    assert {name for name, _, _ in tradeoff.STUDY.pictures(done)} == pictures - {"attention"}
    assert "picture of attention is left out" in capsys.readouterr().err


def test_ranks_share_the_mean_of_theirs():
    np.testing.assert_array_equal(tradeoff.ranks([3.0, 1.0, 3.0, 2.0]), [2.5, 0, 2.5, 1])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6 Σd² / (n (n² − 1)) = 1 − 24 / 120
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_rank_correlation_by_hand(a, b, expected):
    assert tradeoff.rank_correlation(a, b) == pytest.approx(expected)


def test_the_share_nearest_to_one_half(tmp_path):
    entries = tradeoff.STUDY.entries(toy_plan(tmp_path, shares=(1.0, 0.5, 0.25)))
    assert tradeoff.nearest_share(entries) == 0.5 and tradeoff.nearest_share(entries[:1]) is None


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def test_the_tradeoff_shows_means_and_spreads_of_every_method():
    figure = tradeoff.plot_tradeoff(rows())
    whole, by_time, difference = figure.axes
    assert len(by_time.containers) == 3
    drawn = {c.get_label(): c for c in whole.containers}
    assert list(drawn) == ["random", "magnitude", "gates"]
    for method, first in (("random", 2.5), ("magnitude", 2.6), ("gates", 2.2)):
        line, _, (bars,) = drawn[method]
        np.testing.assert_allclose(line.get_xdata(), [2, 3], atol=0.4)
        np.testing.assert_allclose(line.get_ydata(), [first + 0.05 + 1 / 2, first + 0.05 + 1 / 3])
        half = np.diff([s[:, 1] for s in bars.get_segments()])[:, 0] / 2
        np.testing.assert_allclose(half, spread([0.0, 0.1]))
    np.testing.assert_allclose(difference.containers[-1][0].get_ydata(), [-0.3, -0.3])
    assert len(difference.containers) == 2  # random against itself is the line at 0


def test_no_two_methods_look_alike():
    looks = {method: look([], method) for method in METHODS}
    kinds = [(v["linestyle"], v["marker"], v["markerfacecolor"] == "white") for v in looks.values()]
    assert len(set(kinds)) == len(looks) == len(METHODS)
    by_colour = {}
    for v in looks.values():
        by_colour.setdefault(v["color"], []).append((v["linestyle"], v["markerfacecolor"] == "white"))
    assert all(len(set(own)) == len(own) for own in by_colour.values())
    assert looks["gates"]["color"] != GREY


def test_parameters_stand_above_their_heads():
    figure = tradeoff.plot_tradeoff(rows())
    figure.draw_without_rendering()
    (above,) = figure.axes[0].child_axes
    low, high = figure.axes[0].get_xlim()
    np.testing.assert_allclose(above.get_xlim(), [100 + 10 * low, 100 + 10 * high])


def test_a_single_seed_and_no_random_pruning_can_be_drawn():
    tradeoff.plot_tradeoff([r for r in rows() if r["seed"] == 0 and r["method"] == "gates"]).draw_without_rendering()


def test_kept_heads_are_written_in_their_cells():
    figure = tradeoff.plot_kept(rows())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["3 of 4", "2 of 4"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["2", "1"] * 3
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["random", "magnitude", "gates"]


def test_differences_from_michel_are_paired_by_seed():
    """Where Michel's criterion is missing there is no picture."""
    assert tradeoff.plot_beyond(rows()) is None
    figure = tradeoff.plot_beyond(rows(), reference="random")
    bits = {(r["method"], r["heads_open"], r["seed"]): r["bits_per_character"] for r in rows() if r["split"] == "test"}
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for axes in figure.axes:
        count = int(axes.get_title(loc="left").split()[0])
        dots = dict(zip(names, axes.lines[1::2], strict=True))
        seeds = sorted(seed for method, heads, seed in bits if (method, heads) == ("gates", count))
        expected = [bits["gates", count, seed] - bits["random", count, seed] for seed in seeds]
        np.testing.assert_allclose(sorted(dots["gates"].get_xdata()), sorted(expected))
    assert len(figure.axes) == len({heads for _, heads, _ in bits}) - 1  # all heads are no pruning


def test_agreement_has_a_number_in_every_cell():
    numbers = {(a, b): 1.0 if a == b else -0.25 for a in "xy" for b in "xy"}
    records = [{"method": a, "other": b, "rank_correlation": number} for (a, b), number in numbers.items()]
    assert [t.get_text() for t in tradeoff.plot_agreement(records).axes[0].texts] == ["1", "-.25", "-.25", "1"]


@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl", "transformer"])
def test_attention_of_kept_and_removed_heads_is_what_the_model_computes(kind):
    model = small_model(small_config(kind))
    tokens = np.random.default_rng(0).integers(0, 11, 30)
    figure = tradeoff.plot_attention(model, tokens, [[1], [0, 2]], each=2)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    kept = ["kept: layer 0, head 1", "kept: layer 1, head 2"]
    removed = ["removed: layer 0, head 0", "removed: layer 1, head 1"]
    assert [",".join(title.split(",")[:2]) for title in titles] == kept + removed
    T, M = model.config.T, model.config.M
    _, memory, _ = model.forward(tokens[None, :T])
    _, _, cache = model.forward(tokens[None, T : 2 * T], memory)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown, cache.attention_blocks[0].attention.a[0, 1, :, : min(M, T) + T])


def test_nothing_removed_leaves_its_row_empty():
    model = small_model(small_config())
    figure = tradeoff.plot_attention(model, np.arange(30) % 11, [[0, 1, 2], [0, 1, 2]], each=2)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, False, False]
