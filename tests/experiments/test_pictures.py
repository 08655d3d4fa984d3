"""Pictures show the numbers that they are given."""

import matplotlib
import numpy as np
import pytest
from small import small_config, small_model
from test_results import row

from tinyprune.experiments import pictures
from tinyprune.experiments.results import spread

LAYERS = {3: "2 1", 2: "1 1"}


def rows() -> list[dict]:
    bits = {"random": 2.5, "magnitude": 2.6, "gates": 2.2}
    places = [(heads, seed) for heads in (2, 3) for seed in (0, 1)]
    made = [row(m, heads, seed, b + 0.1 * seed + 1 / heads) for m, b in bits.items() for heads, seed in places]
    made += [row("unpruned", 4, seed, 2.0) for seed in (0, 1)]
    extra = {"kind": "all-attention", "corpus": "pydoc"}
    return [r | extra | {"heads_by_layer": LAYERS.get(r["heads_open"], "2 2")} for r in made]


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def test_the_tradeoff_shows_means_and_spreads_of_every_method():
    figure = pictures.plot_tradeoff(rows())
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
    looks = {method: pictures.look([], method) for method in pictures.METHODS}
    kinds = [(v["linestyle"], v["marker"], v["markerfacecolor"] == "white") for v in looks.values()]
    assert len(set(kinds)) == len({v["marker"] for v in looks.values()}) == len(looks) == 12
    by_colour = {}
    for v in looks.values():
        by_colour.setdefault(v["color"], []).append((v["linestyle"], v["markerfacecolor"] == "white"))
    assert all(len(set(own)) == len(own) for own in by_colour.values())
    assert looks["gates"]["color"] != pictures.GREY


def test_parameters_stand_above_their_heads():
    figure = pictures.plot_tradeoff(rows())
    figure.draw_without_rendering()
    (above,) = figure.axes[0].child_axes
    low, high = figure.axes[0].get_xlim()
    np.testing.assert_allclose(above.get_xlim(), [100 + 10 * low, 100 + 10 * high])


def test_a_single_seed_and_no_random_pruning_can_be_drawn():
    pictures.plot_tradeoff([r for r in rows() if r["seed"] == 0 and r["method"] == "gates"]).draw_without_rendering()


def test_kept_heads_are_written_in_their_cells():
    figure = pictures.plot_kept(rows())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["3 of 4", "2 of 4"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["2", "1"] * 3
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["random", "magnitude", "gates"]


def test_agreement_has_a_number_in_every_cell():
    records = [
        {"method": a, "other": b, "rank_correlation": 1.0 if a == b else -0.25} for a in ("x", "y") for b in ("x", "y")
    ]
    assert [t.get_text() for t in pictures.plot_agreement(records).axes[0].texts] == ["1", "-.25", "-.25", "1"]


def test_the_ablation_has_a_dot_for_each_seed():
    figure = pictures.plot_ablation([r for r in rows() if r["method"] != "unpruned"])
    assert len(figure.axes) == 2
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2, 2, 2]
    np.testing.assert_allclose(dots[2].get_xdata(), [2.2 + 1 / 3, 2.3 + 1 / 3])


def test_architectures_are_drawn_against_all_three_measures():
    figure = pictures.plot_architecture([r for r in rows() if r["method"] in ("random", "gates")])
    assert [axes.get_xlabel() for axes in figure.axes] == list(pictures.MEASURES.values())
    assert all(len(axes.containers) == 2 for axes in figure.axes)


def test_inference_shares_lie_where_they_should():
    records = [
        {"method": kind, "heads_open": h, "heads_total": 4}
        | {f"{m}_share": rest + (1 - rest) * h / 4 for m in pictures.MEASURES}
        for kind, rest in (("all-attention", 0.1), ("transformer-xl", 0.5))
        for h in (4, 2, 0)
    ]
    figure = pictures.plot_inference(records)
    for axes in figure.axes:
        proportion, first, second = axes.lines
        np.testing.assert_array_equal(proportion.get_xydata(), [[0, 0], [1, 1]])
        np.testing.assert_allclose(first.get_ydata(), [1, 0.55, 0.1])
        np.testing.assert_allclose(second.get_ydata(), [1, 0.75, 0.5])


@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl", "transformer"])
def test_attention_of_kept_and_removed_heads_is_what_the_model_computes(kind):
    model = small_model(small_config(kind))
    tokens = np.random.default_rng(0).integers(0, 11, 30)
    figure = pictures.plot_attention(model, tokens, [[1], [0, 2]], each=2)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert [t.split(",")[0] + "," + t.split(",")[1] for t in titles] == [
        "kept: layer 0, head 1",
        "kept: layer 1, head 2",
        "removed: layer 0, head 0",
        "removed: layer 1, head 1",
    ]
    T, M = model.config.T, model.config.M
    _, memory, _ = model.forward(tokens[None, :T])
    _, _, cache = model.forward(tokens[None, T : 2 * T], memory)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown, cache["layers"][0]["attention"].a[0, 1, :, : min(M, T) + T])


def test_nothing_removed_leaves_its_row_empty():
    model = small_model(small_config())
    figure = pictures.plot_attention(model, np.arange(30) % 11, [[0, 1, 2], [0, 1, 2]], each=2)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, False, False]
