"""The ablation: which gates it trains, what it compares, and its picture."""

import dataclasses

from toy import toy_plan, whole_study

from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.ablation import STUDY


def test_it_takes_away_what_it_says(tmp_path):
    entries = STUDY.entries(toy_plan(tmp_path, shares=(0.5, 0.25)))
    assert len(entries) == 2 * 8 * 2  # seeds · variants · shares
    gates = {e.method: e.cell.config.gate for e in entries}
    on = gates["all three"]
    assert (on.lam_warmup, on.log_alpha_init, on.output_scaling) == (None, 2.0, True)
    off = gates["without all three"]
    assert (off.lam_warmup, off.log_alpha_init, off.output_scaling) == (0, 0.0, False)
    assert gates["without warm-up"] == dataclasses.replace(on, lam_warmup=0)
    assert gates["the paper's 10 × for gates"] == dataclasses.replace(on, lr_multiplier=10.0)
    assert gates["without initialisation"] == dataclasses.replace(on, log_alpha_init=0.0)
    assert gates["without output scaling"] == dataclasses.replace(on, output_scaling=False)


def test_it_ends_with_tables_and_a_picture(tmp_path):
    files, pictures = whole_study("ablation", toy_plan(tmp_path), tmp_path)
    assert pictures == {"ablation"}
    comparison = read_csv(files["comparison.csv"])
    assert len(comparison) == 7 and {r["reference"] for r in comparison} == {"all three"}
