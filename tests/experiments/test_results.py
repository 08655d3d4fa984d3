"""Tables: tidy rows, means and spreads by hand, rank correlation, times, and what goes through CSV and back."""

import dataclasses
import statistics

import numpy as np
import pytest
from test_grid import Here
from toy import toy_plan

from tinyprune.config import KINDS
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.experiments.agreement import agreement, nearest_share, rank_correlation, ranks
from tinyprune.experiments.grid import run_cells
from tinyprune.experiments.results import compare, compare_sizes, read_csv, summarise, tidy, to_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import GRIDS, tradeoff
from tinyprune.experiments.timing import inference, measure_times, with_head_counts
from tinyprune.model.counting import count_multiply_adds, count_parameters

COLUMNS = {
    *("study", "method", "seed", "heads_open", "heads_total", "parameters", "multiply_adds_per_token"),
    *("bits_per_character", "ms_per_1k_tokens", "steps_total", "split"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A plan, its entries, and the store that has them all."""
    directory = tmp_path_factory.mktemp("results")
    plan = toy_plan(directory, methods=("random", "magnitude", "gates"))
    store = Store(directory / "study")
    run_cells([entry.cell for entry in tradeoff(plan)], store, Here().opened())
    return plan, tradeoff(plan), store


def test_a_row_for_each_model_and_split(study):
    _, entries, store = study
    rows = tidy("tradeoff", entries, store, 27, "numpy")
    assert len(rows) == 2 * len(entries) and set(rows[0]) >= COLUMNS
    for row, (entry, split) in zip(rows, [(e, s) for e in entries for s in ("valid", "test")], strict=True):
        record = store.record(entry.cell)
        assert row["split"] == split and row["bits_per_character"] == record["bits_per_character"][split]
        assert row["method"] == entry.method and row["seed"] == entry.seed and row["ms_per_1k_tokens"] > 0
        assert row["heads_open"] == sum(int(h) for h in row["heads_by_layer"].split()) == sum(record["heads"])
        assert entry.cell.heads in (None, row["heads_open"])


def test_rows_of_a_study_that_is_not_done_are_refused(study, tmp_path):
    _, entries, _ = study
    with pytest.raises(CheckpointError, match="lacks the cell all-attention baseline, seed 0; run the study again"):
        tidy("tradeoff", entries, Store(tmp_path), 27, "numpy")


def row(method, heads, seed, bits, split="test"):
    return {
        "method": method,
        "heads_open": heads,
        "heads_total": 4,
        "seed": seed,
        "split": split,
        "parameters": 100 + 10 * heads,
        "multiply_adds_per_token": 7,
        "bits_per_character": bits,
        "ms_per_1k_tokens": 1.0 + seed,
    }


ROWS = [row("random", 2, 0, 2.0), row("random", 2, 1, 3.0), row("gates", 2, 0, 1.9), row("gates", 2, 1, 2.5)]
ROWS += [row("gates", 1, 0, 9.0), row("gates", 2, 0, 77.0, "valid"), row("random", 3, 0, 1.0)]


def test_mean_and_spread_by_hand():
    random, gates, single, _ = summarise(ROWS)
    assert (random["bits_per_character"], random["seeds"]) == (2.5, 2)
    assert gates["bits_per_character"] == pytest.approx(2.2) and gates["ms_per_1k_tokens"] == 1.5
    assert gates["spread"] == pytest.approx(statistics.stdev([1.9, 2.5]))
    assert (single["heads_open"], single["spread"], single["seeds"]) == (1, None, 1)


def test_differences_are_taken_seed_by_seed():
    (record,) = compare(ROWS, "gates")
    assert (record["method"], record["reference"], record["heads_open"], record["seeds"]) == ("random", "gates", 2, 2)
    assert record["difference"] == pytest.approx(((2.0 - 1.9) + (3.0 - 2.5)) / 2)
    assert record["spread"] == pytest.approx(statistics.stdev([0.1, 0.5]))
    assert compare(ROWS, "michel") == []


def test_models_are_compared_at_as_many_parameters():
    """Of the one, 110, 130, 150; of the other, 100 and 140: at 110 and 130 there is a line, at 150 nothing."""
    own = [row("one", heads, seed, bits) for heads, bits in ((1, 3.0), (3, 2.0), (5, 1.0)) for seed in (0, 1)]
    other = [row("other", heads, seed, bits + seed) for heads, bits in ((0, 4.0), (4, 2.0)) for seed in (0, 1)]
    small, large = compare_sizes(own + other, "other", "one")
    assert [(r["heads_open"], r["parameters"], r["seeds"]) for r in (small, large)] == [(1, 110, 2), (3, 130, 2)]
    assert small["difference"] == pytest.approx((4.0 - 0.25 * 2.0) - 3.0 + 0.5)
    assert large["difference"] == pytest.approx((4.0 - 0.75 * 2.0) - 2.0 + 0.5)
    assert small["spread"] == pytest.approx(statistics.stdev([0, 1]))


def test_csv_and_back(study):
    _, entries, store = study
    rows = tidy("tradeoff", entries, store, 27, "numpy")
    again = read_csv(to_csv(rows))
    assert [list(r) for r in again] == [list(r) for r in rows]
    for before, after in zip(rows, again, strict=True):
        for key, value in before.items():
            assert after[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": (0.5, 0.51)}, r"shares must stand for different numbers of heads; \[0.5, 0.51\] are \[2, 2\]"),
        ({"shares": ()}, "shares must be numbers from 0 to 1"),
        ({"methods": ("gates", "gates")}, "methods must be different"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_plans_that_would_count_twice_are_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        toy_plan(tmp_path, **options)


def test_none_is_an_empty_cell():
    assert to_csv([{"a": 1, "b": None}]) == "a,b\n1,\n" and read_csv("a,b\n1,\n") == [{"a": 1, "b": None}]


# Agreement.


def test_ranks_share_the_mean_of_theirs():
    np.testing.assert_array_equal(ranks([3.0, 1.0, 3.0, 2.0]), [2.5, 0, 2.5, 1])


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
    assert rank_correlation(a, b) == pytest.approx(expected)


def test_agreement_is_the_mean_over_seeds(study):
    _, entries, store = study
    records = agreement(entries, store)
    assert len(records) == 9
    table = {(r["method"], r["other"]): r["rank_correlation"] for r in records}
    assert all(table[m, m] == pytest.approx(1) for m in ("random", "magnitude", "gates"))
    scores = {
        (e.method, e.seed): np.concatenate(store.record(e.cell)["scores"]) for e in entries if e.target_share == 0.5
    }
    expected = np.mean([rank_correlation(scores["random", s], scores["gates", s]) for s in (0, 1)])
    assert table["random", "gates"] == table["gates", "random"] == pytest.approx(expected)


def test_the_share_nearest_to_one_half(study):
    _, entries, _ = study
    assert nearest_share(entries) == 0.5 and nearest_share(entries[:1]) is None


# Time.


def test_each_configuration_is_measured_once(study):
    plan, _, _ = study
    config = dataclasses.replace(plan.config.model, V=27)
    half = with_head_counts(config, [1, 1])
    ms = measure_times([config, half, config], "numpy", at_least=0.01)
    assert list(ms) == [config, half] and all(value > 0 for value in ms.values())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_shares_are_of_the_model_with_all_its_heads(kind, study):
    plan, _, _ = study
    changes = {} if kind == "all-attention" else {"N": 0, "F": 4}
    config = dataclasses.replace(plan.config.model, V=27, kind=kind, **changes)
    records = inference({kind: config}, "numpy")
    assert [r["heads_open"] for r in records] == [4, 2, 0]
    for r in records:
        own = with_head_counts(config, [r["heads_open"] // 2] * 2)
        assert r["parameters"] == count_parameters(own)
        assert r["multiply_adds_per_token"] == count_multiply_adds(own)
        assert r["parameters_share"] == pytest.approx(r["parameters"] / records[0]["parameters"])
        assert r["ms_per_1k_tokens_share"] == pytest.approx(r["ms_per_1k_tokens"] / records[0]["ms_per_1k_tokens"])


# Grids.


@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_what_they_say(name, tmp_path):
    plan = toy_plan(tmp_path, shares=(0.5, 0.25))
    entries = GRIDS[name](plan)
    counts = {
        "tradeoff": 2 * (2 + 2 * 2),  # seeds · (baseline, unpruned, methods · shares)
        "ablation": 2 * 8 * 2,  # seeds · variants · shares
        "architecture": 2 * 2 * (1 + 2),  # seeds · kinds · (unpruned, shares)
    }
    assert len(entries) == counts[name] == len({(e.method, e.target_share, e.seed) for e in entries})
    # all names stand for different cells
    assert len({e.cell.key for e in entries}) == len(entries)
    assert {e.seed for e in entries} == {0, 1}


def test_the_ablation_takes_away_what_it_says(tmp_path):
    gates = {e.method: e.cell.config.gate for e in GRIDS["ablation"](toy_plan(tmp_path, seeds=1))}
    on = gates["all three"]
    assert (on.lam_warmup, on.log_alpha_init, on.output_scaling) == (None, 2.0, True)
    off = gates["without all three"]
    assert (off.lam_warmup, off.log_alpha_init, off.output_scaling) == (0, 0.0, False)
    assert gates["without warm-up"] == dataclasses.replace(on, lam_warmup=0)
    assert gates["the paper's 10 × for gates"] == dataclasses.replace(on, lr_multiplier=10.0)
    assert gates["without initialisation"] == dataclasses.replace(on, log_alpha_init=0.0)
    assert gates["without output scaling"] == dataclasses.replace(on, output_scaling=False)


def test_both_architectures_have_as_many_parameters(tmp_path):
    entries = GRIDS["architecture"](toy_plan(tmp_path))
    models = {e.method: dataclasses.replace(e.cell.config.model, V=27) for e in entries}
    counts = [count_parameters(model) for model in models.values()]
    assert list(models) == ["all-attention", "transformer-xl"]
    # LayerNorm and the biases of the feed-forward block are all that differs
    config = models["transformer-xl"]
    assert counts[1] - counts[0] == config.L * (3 * config.D + config.F)
