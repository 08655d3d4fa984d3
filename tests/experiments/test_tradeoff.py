"""The trade-off: its cells, tables and rank correlations by hand."""

import numpy as np
import pytest
from toy import toy_plan, whole_study

from tinyprune.experiments.results import read_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import tradeoff


def test_it_ends_with_tables_and_pictures(tmp_path):
    """Agreement is the mean over seeds."""
    plan = toy_plan(tmp_path, methods=("random", "magnitude", "gates"))
    entries = tradeoff.STUDY.entries(plan)
    assert len(entries) == 2 * (2 + 3 + 2)  # seeds · (baseline, unpruned, methods, small ones)
    files, pictures = whole_study("tradeoff", plan, tmp_path)
    assert pictures == {"tradeoff", "kept", "agreement"}
    assert {r["reference"] for r in read_csv(files["comparison.csv"])} == {"gates", "random"}
    table = {(r["method"], r["other"]): r["rank_correlation"] for r in read_csv(files["agreement.csv"])}
    assert len(table) == 9 and all(table[m, m] == pytest.approx(1) for m in ("random", "magnitude", "gates"))
    store = Store(tmp_path / "tradeoff")
    scores = {(e.method, e.seed): np.ravel(store.record(e.cell).get("scores")) for e in entries if e.cell.heads}
    expected = np.mean([tradeoff.rank_correlation(scores["random", s], scores["gates", s]) for s in (0, 1)])
    assert table["random", "gates"] == table["gates", "random"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6 Σd² / (n (n² − 1)) = 1 − 24 / 120
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_rank_correlation_by_hand(a, b, expected):
    assert tradeoff.rank_correlation(a, b) == pytest.approx(expected)
