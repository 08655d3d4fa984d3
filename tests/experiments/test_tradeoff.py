"""The trade-off: its cells, tables and pictures."""

from toy import toy_plan, whole_study

from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies import tradeoff


def test_it_ends_with_tables_and_pictures(tmp_path):
    plan = toy_plan(tmp_path, methods=("random", "magnitude", "gates", "small-from-scratch", "small-longer"))
    entries = tradeoff.STUDY.entries(plan)
    assert len(entries) == 2 * (2 + 5)  # seeds · (baseline, unpruned, methods)
    files, pictures = whole_study("tradeoff", plan, tmp_path)
    assert pictures == {"tradeoff"}
    assert {r["reference"] for r in read_csv(files["comparison.csv"])} == {"gates", "random"}
