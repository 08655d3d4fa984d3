"""Tables: tidy rows, means and spreads by hand, rank correlation, times, and what goes through CSV and back."""

import statistics

import pytest
from toy import Here, row, toy_study

from tinyprune.errors import TinypruneError
from tinyprune.experiments.grid import run_cells
from tinyprune.experiments.results import read_csv, result_rows, summarise, to_csv
from tinyprune.experiments.store import Store

COLUMNS = {
    *("study", "method", "seed", "heads_open", "heads_total", "parameters", "multiply_adds_per_token"),
    *("bits_per_character", "steps_total", "split", "start"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The cells of a study, and the store that has them all."""
    directory = tmp_path_factory.mktemp("results")
    cells = toy_study(directory, methods=("random", "magnitude", "gates")).cells
    store = Store(directory / "study")
    run_cells(cells, store, Here().opened)
    return cells, store


def test_a_row_for_each_model_and_split(study):
    cells, store = study
    rows = result_rows("tradeoff", cells, store)
    assert len(rows) == 2 * len(cells) and set(rows[0]) >= COLUMNS
    for made, (cell, split) in zip(rows, [(c, s) for c in cells for s in ("valid", "test")], strict=True):
        record = store.records[cell.key]
        assert made["split"] == split and made["bits_per_character"] == record["bits_per_character"][split]
        assert made["method"] == cell.method and made["seed"] == cell.config.seed
        assert made["heads_open"] == sum(int(h) for h in made["heads_by_layer"].split()) == sum(record["heads"])
        assert cell.heads in (None, made["heads_open"])


ROWS = [row("random", 2, 0, 2.0), row("random", 2, 1, 3.0), row("gates", 2, 0, 1.9), row("gates", 2, 1, 2.5)]
ROWS += [row("gates", 1, 0, 9.0), row("gates", 2, 0, 77.0, "valid"), row("random", 3, 0, 1.0)]


def test_mean_and_spread_by_hand():
    """The spread is that of the mean of both splits."""
    both = [
        r | {"split": split, "bits_per_character": r["bits_per_character"] + more}
        for r in ROWS
        if r["split"] == "test"
        for split, more in (("valid", r["seed"]), ("test", 0))
    ]
    random, gates, single, _ = summarise(both)
    assert (random["test"], random["valid"], random["seeds"]) == (2.5, 3.0, 2)
    assert gates["test"] == pytest.approx(2.2)
    assert gates["spread"] == pytest.approx(statistics.stdev([1.9, 3.0]))
    assert (single["heads_open"], single["spread"], single["seeds"]) == (1, None, 1)


def test_csv_and_back(study):
    cells, store = study
    rows = result_rows("tradeoff", cells, store)
    again = read_csv(to_csv(rows))
    assert [list(r) for r in again] == [list(r) for r in rows]
    for before, after in zip(rows, again, strict=True):
        for key, value in before.items():
            assert after[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    assert to_csv([{"a": 1, "b": None}]) == "a,b\n1,\n" and read_csv("a,b\n1,\n") == [{"a": 1, "b": None}]


def test_models_of_one_baseline_must_have_begun_with_the_same_weights(study, monkeypatch):
    cells, store = study
    gates = [cell for cell in cells if cell.method == "gates"][-1]
    monkeypatch.setitem(store.records, gates.key, store.records[gates.key] | {"baseline_sha256": "another"})
    with pytest.raises(TinypruneError, match="seed 1 began with different weights"):
        result_rows("tradeoff", cells, store)
