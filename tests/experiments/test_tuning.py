"""Tuning: the same trials for every kind, and settings that are the best of those that were run."""

import itertools
from pathlib import Path

import numpy as np
from toy import row, toy_plan

from tinyprune.experiments.kinds import ATTENTION, NETWORKS, SETTINGS, XL
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.tuning import RATES, STARTS, entries, plot_tuning, title

KINDS = (ATTENTION, NETWORKS, XL)
RESULTS = Path(__file__).parents[2] / "data" / "results" / "tuning-pydoc" / "results.csv"


def test_every_kind_has_the_same_trials(tmp_path):
    plan = toy_plan(tmp_path, seeds=1)
    configs = {e.method: e.cell.config for e in entries(plan)}
    assert list(configs) == [title(kind, lr, *start) for kind in KINDS for lr in RATES for start in STARTS]
    for kind in KINDS:
        config = configs[title(kind, 8e-3, 4.0, 0.01)]
        assert config.model.init_gain == 4.0 and config.train.lr == 8e-3
        for stage in (config.train, config.gate_train, config.finetune):
            assert stage.weight_decay == 0.01 and stage.lr == 4 * plan.config.train.lr == 8e-3


def test_settings_are_the_best_trials_on_the_validation_split():
    rows = [r for r in read_csv(RESULTS.read_text()) if r["split"] == "valid"]
    for kind in KINDS:
        trials = [r for r in rows if r["method"].startswith(f"{kind},")]
        assert len(trials) == len(RATES) * len(STARTS)
        best = min(trials, key=lambda r: r["bits_per_character"])
        assert best["method"] == title(kind, **SETTINGS[kind])


def test_the_picture_has_an_axes_for_each_kind_and_a_line_for_each_start():
    trials = itertools.product(KINDS, RATES, STARTS)
    rows = [row(title(kind, lr, *start), 4, 0, 2 + lr + start[0], "valid") for kind, lr, start in trials]
    panels = plot_tuning(rows).axes
    assert [axes.get_title("left") or axes.get_title() for axes in panels] == list(KINDS)
    for axes in panels:
        for line, (gain, _) in zip(axes.lines, STARTS, strict=True):
            np.testing.assert_allclose(line.get_ydata(), [2 + lr + gain for lr in RATES])
