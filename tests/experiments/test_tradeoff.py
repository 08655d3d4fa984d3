"""The trade-off: its cells, tables and pictures."""

from toy import toy_study, whole_study

from tinyprune.experiments.results import read_csv


def test_it_ends_with_tables_and_pictures(tmp_path):
    study = toy_study(tmp_path, methods=("random", "magnitude", "gates", "small-from-scratch", "small-longer"))
    assert len(study.cells) == 2 * (2 + 5)  # seeds · (baseline, unpruned, methods)
    files, pictures = whole_study(study, tmp_path)
    assert pictures == {"tradeoff"}
    assert {r["reference"] for r in read_csv(files["comparison.csv"])} == {"gates", "random"}
