"""Stabilisers at a fixed lam: variants, collapsed runs, and the curves."""

import dataclasses

import numpy as np
import pytest
from toy import row, toy_plan, whole_study

from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies import stabilisers
from tinyprune.experiments.studies.stabilisers import LAMS, VARIANTS, plot_stabilisers, title


def test_every_variant_is_swept_over_the_same_lams(tmp_path):
    entries = stabilisers.entries(toy_plan(tmp_path, seeds=1))
    gates = {e.method: e.cell.config.gate for e in entries}
    assert len(entries) == len(gates) == len(VARIANTS) * len(LAMS)
    for variant, changes in VARIANTS.items():
        own = [gates[title(variant, lam)] for lam in LAMS]
        assert [gate.lam for gate in own] == list(LAMS)
        assert all(getattr(gate, name) == value for gate in own for name, value in changes.items())


def test_it_ends_with_curves_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(stabilisers, "LAMS", (0.0, 30.0))
    plan = toy_plan(tmp_path)
    options = {"gate_train.steps": 30, "gate.lr_multiplier": 300.0, "gate.lam_warmup": 2}
    plan = dataclasses.replace(plan, config=plan.config.with_options(options))
    files, pictures = whole_study("stabilisers", plan, tmp_path, monkeypatch)
    assert pictures == {"stabilisers"}
    curves = read_csv(files["curves.csv"])
    assert [(r["variant"], r["lam"]) for r in curves] == [(v, lam) for v in VARIANTS for lam in (0, 30)]
    assert [(r["heads"], r["empty_layers"], r["collapsed"]) for r in curves[:2]] == [(4, 0, 0), (0, 2, 2)]
    assert [(r["difference"], r["within"]) for r in curves[:2]] == [(0, 2), (0, 2)]


def test_differences_are_taken_at_equal_numbers_of_heads():
    curve = [(16, 2.0), (8, 3.0), (4, 3.5)]
    assert stabilisers.at(curve, 12) == pytest.approx(2.5) and stabilisers.at(curve, 5) == pytest.approx(3.375)
    assert stabilisers.at(curve, 17) is None and stabilisers.at(curve, 3) is None


def test_a_line_goes_through_the_means_in_the_order_of_heads():
    counts = dict(zip(LAMS, (4, 4, 3, 2, 0), strict=True))
    rows = [row(title(v, lam), counts[lam], seed, 2 + seed + lam) for v in VARIANTS for lam in LAMS for seed in (0, 1)]
    axes = plot_stabilisers(rows).axes[0]
    lines = [line for line in axes.lines if line.get_label() in VARIANTS]
    assert len(lines) == len(VARIANTS)
    np.testing.assert_array_equal(lines[0].get_xdata(), [0, 2, 3, 4, 4])
    assert lines[0].get_ydata()[0] == pytest.approx(2.5 + LAMS[-1])
