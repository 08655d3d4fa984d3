"""Parity: which models it trains and for how long, what it compares, and its picture."""

import dataclasses

import numpy as np
from toy import row, toy_plan, whole_study

from tinyprune.experiments.kinds import ATTENTION, NETWORKS, XL
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies import parity
from tinyprune.experiments.studies.parity import BIASED, CAUSES, LENGTHS, LOWER, ORIGINAL, RELEASE, plot_parity, title
from tinyprune.model.counting import count_parameters


def test_every_kind_has_as_many_parameters_and_steps(tmp_path):
    plan = toy_plan(tmp_path, seeds=4)
    config = plan.config.with_options({"train.steps": 14_000, "train.lr_min": 1e-4})
    entries = parity.entries(dataclasses.replace(plan, config=config))
    by_name = {e.method: e.cell.config for e in entries}
    counts = {name: sum(e.method == name for e in entries) for name in by_name}
    assert [counts[title(XL, 1500)], counts[title(XL, 14_000)], counts[parity.wide_title(XL)]] == [4, 3, 3]  # seeds
    for name, config in by_name.items():
        assert name.endswith(f": {config.train.steps} steps")
    wide = {name: by_name.pop(name) for name in map(parity.wide_title, parity.WIDE_KINDS)}
    assert set(by_name) == {title(kind, steps) for steps, kinds in LENGTHS.items() for kind in kinds}
    for group, xl in ((by_name, title(XL, 1500)), (wide, parity.wide_title(XL))):
        sizes = [count_parameters(config.with_options({"model.V": 26}).model) for config in group.values()]
        xl = group[xl].model
        assert max(sizes) - min(sizes) == xl.L * (3 * xl.D + xl.F)  # LayerNorm and biases of the feed-forward blocks
    for kind in parity.WIDE_KINDS:
        own, narrow = wide[parity.wide_title(kind)], by_name[title(kind, 3500)]
        twice = {name: 2 * getattr(narrow.model, name) for name in ("D", "N", "F")}
        assert own.model == dataclasses.replace(narrow.model, **twice)
        rates = {"lr": 1e-3, "lr_min": narrow.train.lr_min * 1e-3 / narrow.train.lr}
        assert own.train == dataclasses.replace(narrow.train, **rates)
    gains = {name: (by_name[title(name, 1500)].model.init_gain, by_name[title(name, 1500)].train.lr) for name in CAUSES}
    assert gains[RELEASE] == gains[ORIGINAL] == (1.0, gains[ATTENTION][1]) != gains[ATTENTION]
    assert by_name[title(ORIGINAL, 1500)].model.persistent_init == "original"
    assert [name for name in CAUSES if by_name[title(name, 1500)].model.bias == "layers"] == [BIASED]
    lower, networks = by_name[title(LOWER, 1500)], by_name[title(NETWORKS, 1500)]
    assert lower.model == networks.model and lower.train == by_name[title(XL, 1500)].train != networks.train


def test_it_ends_with_tables_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "LENGTHS", {4: CAUSES, 8: (NETWORKS, XL)})
    monkeypatch.setattr(parity, "WIDE_STEPS", 4)
    files, pictures = whole_study("parity", toy_plan(tmp_path), tmp_path, monkeypatch)
    assert pictures == {"parity"}
    pairs = [(r["method"], r["reference"]) for r in read_csv(files["comparison.csv"])]
    expected = [(title(kind, 4), title(XL, 4)) for kind in CAUSES[:-1]]
    wide = [(parity.wide_title(kind), parity.wide_title(XL)) for kind in parity.WIDE_KINDS[:-1]]
    assert pairs == [*expected, (title(NETWORKS, 8), title(XL, 8)), *wide]


def test_lines_go_over_steps_and_rows_over_causes():
    rows = [
        row(title(kind, steps), 4, seed, 2 + seed + 1 / steps)
        for steps, kinds in LENGTHS.items()
        for kind in kinds
        for seed in (0, 1)
    ]
    by_cause, by_steps = plot_parity(rows).axes
    lines = {c.get_label(): c.lines[0].get_xydata() for c in by_steps.containers}
    assert list(lines) == [ATTENTION, NETWORKS, LOWER, XL]
    np.testing.assert_allclose(lines[LOWER], [[steps, 2.5 + 1 / steps] for steps in LENGTHS])
    assert [steps for steps, _ in lines[NETWORKS]] == [1500, 3500]
    assert len([line for line in by_cause.lines if line.get_marker() == "o"]) == len(CAUSES)
    assert len(plot_parity([r for r in rows if r["method"].endswith(" 1500 steps")]).axes) == 1


def test_no_length_is_longer_than_what_is_configured():
    assert parity.lengths(14_000) == LENGTHS
    assert parity.lengths(2000) == {1500: CAUSES, 2000: LENGTHS[3500]} and parity.lengths(200) == {200: CAUSES}
