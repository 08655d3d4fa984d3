"""The architecture study: equal sizes, what removing heads saves, and the pictures."""

import dataclasses

import numpy as np
import pytest
from toy import rows, toy_plan, whole_study

from tinyprune.errors import UsageError
from tinyprune.experiments.drawing import MEASURES
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.architecture import STUDY, plot_architecture, plot_inference
from tinyprune.experiments.timing import with_head_counts
from tinyprune.model.counting import count_multiply_adds, count_parameters


@pytest.fixture
def models(tmp_path):
    entries = STUDY.entries(toy_plan(tmp_path, shares=(0.5, 0.25), methods=("gates",)))
    assert len(entries) == 2 * 3 * (1 + 2)  # seeds · kinds · (unpruned, shares)
    return {e.method: dataclasses.replace(e.cell.config.model, V=26) for e in entries}


def test_all_kinds_have_as_many_parameters(models):
    attention, networks, xl = (count_parameters(model) for model in models.values())
    assert list(models) == ["all-attention", "head-networks", "transformer-xl"]
    # LayerNorm and the biases of the feed-forward block are all that differs
    config = models["transformer-xl"]
    assert config.F == config.H * models["head-networks"].N
    assert xl - attention == config.L * (3 * config.D + config.F)
    assert networks == xl


def test_it_ends_with_tables_and_pictures(models, tmp_path, monkeypatch):
    """Shares in inference.csv are of the model with all its heads. (Times are as the parameters here.)"""
    files, pictures = whole_study(
        "architecture", toy_plan(tmp_path, seeds=1, methods=("random",)), tmp_path, monkeypatch
    )
    assert pictures == {"architecture", "inference"}
    assert "with as many parameters and the same seed" in files["README.md"]
    pairs = {(r["method"], r["reference"]) for r in read_csv(files["comparison.csv"])}
    assert pairs == {("transformer-xl", name) for name in ("all-attention", "head-networks")}
    records = read_csv(files["inference.csv"])
    assert [(r["method"], r["heads_open"]) for r in records] == [(kind, h) for kind in models for h in (4, 2, 0)]
    for i, r in enumerate(records):
        own, whole = with_head_counts(models[r["method"]], [r["heads_open"] // 2] * 2), records[i - i % 3]
        assert r["parameters"] == r["ms_per_1k_tokens"] == count_parameters(own)
        assert r["multiply_adds_per_token"] == count_multiply_adds(own)
        for measure in MEASURES:
            assert r[f"{measure}_share"] == pytest.approx(r[measure] / whole[measure], rel=1e-5)


def test_it_prunes_by_one_method(tmp_path):
    assert {e.cell.method for e in STUDY.entries(toy_plan(tmp_path, methods=("michel",)))} == {"unpruned", "michel"}
    with pytest.raises(UsageError, match="architecture prunes by one method, got random, gates"):
        STUDY.entries(toy_plan(tmp_path))


def test_the_kinds_are_drawn_against_all_three_measures():
    figure = plot_architecture([r for r in rows() if r["method"] in ("random", "gates")])
    assert [axes.get_xlabel() for axes in figure.axes] == list(MEASURES.values())
    assert all(len(axes.containers) == 2 for axes in figure.axes)


def test_shares_are_drawn_where_they_should_be():
    records = [
        {"method": kind, "heads_open": h, "heads_total": 4}
        | {f"{m}_share": rest + (1 - rest) * h / 4 for m in MEASURES}
        for kind, rest in (("all-attention", 0.1), ("transformer-xl", 0.5))
        for h in (4, 2, 0)
    ]
    for axes in plot_inference(records).axes:
        proportion, first, second = axes.lines
        np.testing.assert_array_equal(proportion.get_xydata(), [[0, 0], [1, 1]])
        np.testing.assert_allclose(first.get_ydata(), [1, 0.55, 0.1])
        np.testing.assert_allclose(second.get_ydata(), [1, 0.75, 0.5])
