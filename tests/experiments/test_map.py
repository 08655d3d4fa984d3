"""The map: equal steps for gates and criteria, frozen weights, and who is drawn as the winner."""

import dataclasses

import numpy as np
import pytest
from toy import toy_cell, toy_plan, whole_study

from tinyprune.experiments.cells import compute
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies import map as the_map


def test_gates_and_criteria_are_read_after_as_many_steps(tmp_path):
    entries = the_map.entries(toy_plan(tmp_path, seeds=1))
    gates = {e.method: e.cell for e in entries if e.cell.method == "gates"}
    stages = [cell.config.gate_train.steps for cell in gates.values()]
    assert stages == [0, 1, 4, 12] and {cell.readings for cell in gates.values()} == {(0, 1, 4)}
    for entry in entries[4:]:
        assert entry.method in the_map.RIVALS and entry.cell.config.gate_train.steps == 0
        assert set(entry.cell.readings) == {a + b for a in stages for b in (0, 1, 4)}
        assert entry.cell.config.finetune.steps == 16


def test_readings_are_of_the_model_as_it_is_then(tmp_path):
    """Trainings with a constant learning rate that end earlier pass through the same models."""
    options = {"finetune__schedule": "constant"}
    baseline = compute(toy_cell(tmp_path)).checkpoint
    cell = dataclasses.replace(toy_cell(tmp_path, "random", 2, **options), readings=(0, 2, 4))
    readings = compute(cell, baseline).record["readings"]
    assert [r["step"] for r in readings] == [0, 2, 4]
    for reading in readings:
        short = toy_cell(tmp_path, "random", 2, finetune__steps=reading["step"], **options)
        assert compute(short, baseline).record["bits_per_character"]["test"] == reading["test"]


def test_frozen_weights_stay_while_gates_move(tmp_path):
    # with output scaling the removal would change the weights
    config = toy_plan(tmp_path).config.with_options({"gate.output_scaling": False})
    frozen = the_map.with_stage(config, 6, frozen=True)
    cell = dataclasses.replace(toy_cell(tmp_path, "gates", 2), config=frozen)
    rewound = dataclasses.replace(cell, method="gates-rewound")
    baseline = compute(toy_cell(tmp_path)).checkpoint
    a, b = (compute(c, baseline).record for c in (cell, rewound))
    assert a["bits_per_character"]["test"] == pytest.approx(b["bits_per_character"]["test"], rel=1e-9)
    path = [np.concatenate(point["log_alpha"]) for point in a["gate_path"]]
    assert abs(path[-1] - 2).min() > 0.1


def test_it_ends_with_tables_and_a_picture(tmp_path, monkeypatch):
    files, pictures = whole_study("map", toy_plan(tmp_path), tmp_path, monkeypatch)
    assert pictures == {"map"}
    records = read_csv(files["map.csv"])
    assert len(records) == 4 * 3 * 4 and {r["seeds"] for r in records} == {2}
    for r in records:
        assert r["difference"] == pytest.approx(r["bits_per_character"] - r["gates"], abs=1e-5)
