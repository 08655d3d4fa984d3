"""Intervals, against SciPy's paired test, and verdicts, corrections and flips of signs by hand."""

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_rel
from toy import row

from tinyprune.errors import UsageError
from tinyprune.experiments.intervals import compared, difference, estimate, holm, joined, verdict

RNG = np.random.default_rng(0)
NOISE = {(m, seed, split): RNG.normal(0, 0.01) for m in "abc" for seed in range(5) for split in ("valid", "test")}
BASELINES = RNG.normal(0, 0.1, 5)


def rows(methods="abc", more=0.05):
    """Methods b and c need `more` and twice as many bits more than a."""
    return [
        row(m, 2, seed, 2 + BASELINES[seed] + more * "abc".index(m) + NOISE[m, seed, split], split)
        for m in methods
        for seed in range(5)
        for split in ("valid", "test")
    ]


def mean_of_splits(method, made):
    own = [r["bits_per_character"] for r in made if r["method"] == method]
    return np.reshape(own, (5, 2)).mean(1)


def test_of_two_methods_it_is_the_paired_t_test():
    made = rows("ab")
    (found,) = compared(made, "a")
    expected = ttest_rel(mean_of_splits("b", made), mean_of_splits("a", made))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
    assert found["p"] == pytest.approx(expected.pvalue) and found["verdict"] == "worse"
    assert found["difference"] == pytest.approx((found["valid"] + found["test"]) / 2)
    assert found["high"] - found["difference"] < found["smallest"] < 2 * (found["high"] - found["difference"])
    (back,) = compared(made, "b")
    assert [(r["method"], r["reference"]) for r in compared(rows(), "a", "b")] == [*zip("bcc", "aab", strict=True)]
    assert back["verdict"] == "better" and back["low"] == pytest.approx(-found["high"])


def test_an_interval_has_nothing_but_its_pair():
    alone, among_others = compared(rows("ab"), "a"), compared(rows(), "a")
    assert difference(rows(), "b", "a") == difference(rows("ab"), "b", "a")
    assert [r["low"] for r in alone] == [r["low"] for r in among_others if r["method"] == "b"]


@pytest.mark.parametrize("n", [2, 5, 12])
def test_flips_of_signs_are_counted(n):
    d = RNG.normal(0.01, 0.02, n)
    sums = np.abs([np.dot(signs, d) for signs in itertools.product((-1, 1), repeat=n)])
    assert estimate(d)["p_flip"] == pytest.approx(np.mean(sums >= abs(d.sum()) - 1e-12))
    assert estimate(np.full(n, 0.02))["p_flip"] == pytest.approx(2 / 2**n)  # the least that n seeds can say
    nothing = estimate(np.zeros(n))
    assert (nothing["p"], nothing["p_flip"], nothing["low"]) == (1, 1, 0)


def test_seeds_of_two_studies_are_two_samples_and_pairs_stay_within_a_study():
    first = rows()
    other = [r | {"bits_per_character": r["bits_per_character"] + 1 + 0.01 * r["seed"]} for r in rows("ab", 0.03)]
    both = difference(joined(first, other), "b", "a")
    d = [mean_of_splits("b", made) - mean_of_splits("a", made) for made in (first, other)]
    expected = estimate(np.concatenate(d))
    assert {name: both[name] for name in expected} == pytest.approx(expected) and both["seeds"] == 10
    with pytest.raises(UsageError, match="no model in common, got a, 2 heads, seed 0 twice"):
        joined(first, first)


def test_a_method_with_one_seed_or_without_a_partner_has_no_interval():
    made = [r for r in rows() if r["method"] == "a" or r["seed"] == 0]
    assert compared(made, "a") == compared(made, "nobody") == []


def test_corrections_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]


VERDICTS = [(-0.009, 0.002, 0.5, -0.01, 0.001, "level"), (0.001, 0.009, 0.01, 0.005, 0.005, "level")]
VERDICTS += [(-0.02, 0.002, 0.2, -0.01, -0.01, "open"), (0.01, 0.03, 0.01, 0.02, 0.02, "worse")]
VERDICTS += [(-0.03, -0.01, 0.01, -0.02, -0.02, "better"), (0.01, 0.03, 0.06, 0.02, 0.02, "open")]
VERDICTS += [(0.01, 0.03, 0.01, 0.05, -0.01, "open")]


@pytest.mark.parametrize(("low", "high", "p", "valid", "test", "said"), VERDICTS)
def test_a_verdict_needs_certainty_on_both_splits(low, high, p, valid, test, said):
    record = {"low": low, "high": high, "p": p, "valid": valid, "test": test, "difference": (low + high) / 2}
    assert verdict(record) == said
