"""The architecture study: models of equal size, compared at equal sizes."""

import dataclasses

import pytest
from toy import toy_plan, whole_study

from tinyprune.errors import UsageError
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.architecture import STUDY
from tinyprune.model.counting import count_parameters


def test_all_kinds_have_as_many_parameters(tmp_path):
    entries = STUDY.entries(toy_plan(tmp_path, shares=(0.5, 0.25), methods=("gates",)))
    assert len(entries) == 2 * 3 * (1 + 2)  # seeds · kinds · (unpruned, shares)
    models = {e.method: dataclasses.replace(e.cell.config.model, V=26) for e in entries}
    attention, networks, xl = (count_parameters(model) for model in models.values())
    assert list(models) == ["all-attention", "head-networks", "transformer-xl"]
    # LayerNorm and the biases of the feed-forward block are all that differs
    config = models["transformer-xl"]
    assert config.F == config.H * models["head-networks"].N
    assert xl - attention == config.L * (3 * config.D + config.F)
    assert networks == xl


def test_it_ends_with_a_table_and_a_picture(tmp_path, monkeypatch):
    plan = toy_plan(tmp_path, seeds=1, methods=("random",))
    files, pictures = whole_study("architecture", plan, tmp_path, monkeypatch)
    assert pictures == {"architecture"}
    assert "with as many parameters and the same seed" in files["README.md"]
    pairs = {(r["method"], r["reference"]) for r in read_csv(files["comparison.csv"])}
    assert pairs == {("transformer-xl", name) for name in ("all-attention", "head-networks")}


def test_it_prunes_by_one_method(tmp_path):
    assert {e.cell.method for e in STUDY.entries(toy_plan(tmp_path, methods=("michel",)))} == {"unpruned", "michel"}
    with pytest.raises(UsageError, match="architecture prunes by one method, got random, gates"):
        STUDY.entries(toy_plan(tmp_path))
