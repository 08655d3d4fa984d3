"""Cells: each method ends with exactly the heads that were asked for, after equal steps, to the same bits each time."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import numba
import numpy as np
import pytest
import safetensors.numpy
from toy import STEPS, toy_cell, toy_config

from tinyprune.config import RunConfig
from tinyprune.data import Segments
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import TIMES, Cell, CellRun, Outcome, compute, text_of
from tinyprune.experiments.methods import FACTORIAL, KNOWN, METHODS, SMALL, SMALL_LONGER
from tinyprune.kernels.machine import processor_name
from tinyprune.method import texts
from tinyprune.method.criteria import CRITERIA
from tinyprune.method.masks import with_parts
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.training.evaluation import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def baseline(folder):
    return compute(toy_cell(folder))


def bits(folder, baseline, split, mask=None):
    """Bits per character of the model of the baseline's checkpoint, without the heads that a mask leaves out."""
    config = toy_cell(folder).config
    text = text_of(config.data)
    config = dataclasses.replace(config.model, V=text.tokenizer.V)
    model = Transformer(config, safetensors.numpy.load(baseline.checkpoint))
    model = model if mask is None else with_parts(model, mask)
    return evaluate(model, getattr(text, split), text.characters[split]).bits_per_character


def test_a_record_says_where_and_when_it_was_computed(baseline):
    record = baseline.record
    started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
    assert started.utcoffset() == timedelta(0) and started <= ended <= datetime.now(UTC)
    assert 0 < record["seconds"] < (ended - started).total_seconds() + 1.01
    assert record["machine"] == processor_name() and record.keys() >= set(TIMES)


def test_the_baseline_is_the_model_of_its_checkpoint(folder, baseline):
    record = baseline.record
    for split in ("valid", "test"):
        assert record["bits_per_character"][split] == pytest.approx(bits(folder, baseline, split), rel=1e-12)
    assert record["heads"] == [2, 2]
    assert record["parameters"] == count_parameters(dataclasses.replace(toy_cell(folder).config.model, V=26))
    assert record["steps_total"] == STEPS["train"]
    json.dumps(record, allow_nan=False)
    other = compute(toy_cell(folder, seed=1)).record
    assert other["bits_per_character"] != record["bits_per_character"]


COUNTS = [("unpruned", None), *((m, heads) for m in KNOWN for heads in (0, 3, 4))]


@pytest.mark.parametrize(("method", "heads"), COUNTS)
def test_every_method_ends_with_exactly_so_many_heads_after_as_many_steps(method, heads, folder, baseline):
    cell = toy_cell(folder, method, heads)
    outcome = compute(cell, None if cell.baseline is None else baseline.checkpoint)
    record = outcome.record
    assert sum(record["heads"]) == (4 if heads is None else heads)
    assert [len(ids) for ids in record["head_ids"]] == record["heads"]
    steps = sum(STEPS.values())
    if method == SMALL_LONGER:  # as many multiply-adds: the whole model's until heads are removed, and its own after it
        whole, own = (
            count_multiply_adds(dataclasses.replace(cell.config.model, V=26, heads=tuple(h), head_ids=()))
            for h in ([2, 2], record["heads"])
        )
        steps = STEPS["heal"] + round((STEPS["train"] + STEPS["gate_train"]) * whole / own)
    assert record["steps_total"] == steps and outcome.checkpoint is None
    assert (
        method in (SMALL, SMALL_LONGER, "unpruned")
        or cell.definition.by == "least-squares"
        or np.shape(record["scores"]) == (2, 2)
    )
    if method in (SMALL, SMALL_LONGER):
        assert abs(record["heads"][0] - record["heads"][1]) <= 1
    if cell.definition.by == "gates":
        best = np.argsort(-np.concatenate(record["scores"]), kind="stable")[:heads]
        kept = [2 * layer + h for layer, ids in enumerate(record["head_ids"]) for h in ids]
        assert sorted(best) == kept or method == "gates-random"
    json.dumps(record, allow_nan=False)


def test_the_factorial_crosses_choice_repair_and_distillation(folder, baseline):
    """A choice has four models with the same heads."""
    arms = {name: (m.by, m.repair, m.distill) for name, m in FACTORIAL.items()}
    ways = [(repair, distill) for repair in (False, True) for distill in (0.0, 0.5)]
    assert list(arms.values()) == [(by, *w) for by in ("random", "michel", "gates", "least-squares") for w in ways]
    records = {name: compute(toy_cell(folder, name, 2), baseline.checkpoint).record for name in FACTORIAL}
    for by in ("random", "michel", "gates", "least-squares"):
        of_choice = [records[name] for name in arms if arms[name][0] == by]
        assert len({str(record["bits_per_character"]) for record in of_choice}) == 4
        assert len({str(record["head_ids"]) for record in of_choice}) == 1


UNTIED = {"kind": "transformer-xl", "N": 0, "persistent": "softmax", "F": 8, "U": 4}


@pytest.mark.parametrize("method", ["gates", "michel", "least-squares", "small-from-scratch"])
def test_heads_and_blocks_that_are_removed_apart_stay_within_their_share(method, folder):
    cell = toy_cell(folder, method, 2, **{f"model__{name}": value for name, value in UNTIED.items()})
    record = compute(cell, cell.baseline and compute(cell.baseline).checkpoint).record
    config = dataclasses.replace(cell.config.model, V=26)
    prices, _ = Parts(config).prices("parameters")
    allowed = count_parameters(config) - prices.sum() / 2
    assert allowed - prices.max() < record["parameters"] <= allowed
    assert len(record["blocks"]) == 2


@pytest.mark.parametrize("method", [name for name in CRITERIA if name in METHODS])
def test_criteria_take_the_same_share_of_each_layer_if_told_to(method, folder, baseline):
    cell = dataclasses.replace(toy_cell(folder, method, 2), scope="layer")
    assert compute(cell, baseline.checkpoint).record["heads"] == [1, 1]


def test_a_key_changes_with_all_that_the_result_depends_on_and_with_nothing_else(folder):
    def key(method="gates", heads=2, scope="global", **options):
        return Cell(toy_config(folder, **options), method, heads, scope, "numpy").key

    assert key() == key(choose__target_heads=3)  # what is asked for is in the cell
    assert key() == key(scope="layer")  # gates choose among all heads
    assert len({key(), key(heads=1), key(seed=1), key(method="voita"), key(gate__beta=0.5)}) == 5
    # what a cell does not look at, or what its method says instead
    assert key() == key(train__evaluate_every=7) == key(heal__log_every=3) == key(gate__lam=3.0)
    cell = Cell(toy_config(folder), "gates", 2, backend="numpy")
    assert cell.key != dataclasses.replace(cell, digest="of another text").key
    assert key("random") == key("random", gate__beta=0.5)
    assert key("random") != key("random", scope="layer")
    assert key("random") != key("random", heal__lr=1e-3)
    baseline = Cell(toy_config(folder), "gates", 2).baseline.key
    assert baseline == Cell(toy_config(folder, gate__beta=0.5, heal__steps=9), "random", 1).baseline.key
    assert baseline != Cell(toy_config(folder, train__lr=1e-3), "random", 1).baseline.key
    assert key() != Cell(toy_config(folder), "gates", 2).key  # another backend


# Computed by version 0.2, in which gates had options that are gone.
KEYS = {
    "gates": "a82f113bbbb1f7d6",
    "gates-heads": "75accf9a971cacca",
    "gates-random": "facf0f67bd9d2339",
    "voita": "820e2b850e0de706",
    "deterministic": "04e16c97ef392ebf",
    "michel": "7d171f8d5adea349",
    "small-from-scratch": "3c3f3387659c4d8d",
}


@pytest.mark.parametrize("method", KEYS)
def test_cells_that_were_computed_before_keep_their_keys(method):
    assert Cell(RunConfig(), method, 16, digest="text").key == KEYS[method]


def test_every_stage_reads_on_after_the_one_before(folder, baseline, monkeypatch):
    reads = []

    def segments(tokens, B, T, read):
        reads.append(read)
        return Segments(tokens, B, T, read)

    monkeypatch.setattr(texts, "Segments", segments)
    for method, heads in (("unpruned", None), ("gates", 2), (SMALL, 2)):
        compute(toy_cell(folder, method, heads), baseline.checkpoint)
    assert reads == [12, 20, 12, 20, 0, 12, 20]


def test_rewound_gates_are_a_choice_alone_and_random_ones_the_training_alone(folder, baseline, monkeypatch):
    options = {"heal__steps": 0, "gate_train__steps": 30}

    def record(method):
        return compute(toy_cell(folder, method, 2, **options), baseline.checkpoint).record

    gates, heads, others, random = map(record, ("gates", "gates-heads", "gates-random", "random"))
    assert gates["head_ids"] == heads["head_ids"] != others["head_ids"] == random["head_ids"]
    assert {r["steps_total"] for r in (gates, heads, others, random)} == {42}
    assert gates["bits_per_character_after"]["gate"] == others["bits_per_character_after"]["gate"]
    # a criterion that chooses the same heads ends as the rewound ones do
    mask = [np.isin(range(2), ids) for ids in heads["head_ids"]]
    monkeypatch.setitem(CRITERIA, "magnitude", lambda *_: [layer.astype(float) for layer in mask])
    assert record("magnitude")["bits_per_character"] == heads["bits_per_character"] != gates["bits_per_character"]


def test_a_cell_for_another_text_is_refused(folder):
    with pytest.raises(UsageError, match=r"the text .*\(sha256 0{12}…\) is not at .*; put that text back"):
        compute(dataclasses.replace(toy_cell(folder), digest="0" * 64))


def test_a_cell_is_computed_in_one_thread(folder, monkeypatch):
    threads = []
    monkeypatch.setattr(CellRun, "run", lambda *_: threads.append(numba.get_num_threads()) or Outcome({}))
    before = numba.get_num_threads()
    compute(dataclasses.replace(toy_cell(folder), backend="numba"))
    assert threads == [1] and numba.get_num_threads() == before


PAIRS = [("least-squares", "least-squares-distilled"), ("gates", "voita"), ("gates", "deterministic")]


@pytest.mark.parametrize(("plain", "other"), PAIRS)
def test_repair_distillation_and_other_gates_change_the_result(plain, other, folder, baseline):
    one, two = (compute(toy_cell(folder, m, 2), baseline.checkpoint).record for m in (plain, other))
    assert one["bits_per_character"] != two["bits_per_character"]


def test_soft_gates_that_stay_keep_their_values(folder, baseline):
    """However many the controller leaves open too many: what is removed is what goes, no more."""
    record = compute(toy_cell(folder, "voita", 1, gate_train__steps=2), baseline.checkpoint).record
    assert record["heads_shifted"] == 3
    assert np.concatenate(record["scores"]).max() > 1
