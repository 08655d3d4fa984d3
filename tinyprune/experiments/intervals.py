"""Differences between methods: what a study can say of them, with how much certainty.

Each seed is a baseline, and a bad baseline is bad for every method, so methods are compared seed by seed. Method m
needs d[i] bits per character more than the reference on the baseline of seed i, and over n seeds

    d = mean of d[i]        standard error = s / √n        s = standard deviation of d[i], by n − 1

The interval d ± t · standard error holds the true difference in 95 % of all studies with other seeds; it says nothing
of other texts. Nothing but the pair is in it: methods vary unlike each other (random heads most), and a variance
pooled over all of them makes one interval too wide and another too narrow. Where d[i] are not normal, t is an
approximation. The sign-flip test is not: if two methods do not differ, each d[i] is as likely to have the other sign,
and its p is the share of all 2ⁿ combinations of signs whose mean is as large. With n seeds it is never below 2 / 2ⁿ.
Where many differences are tested, chance makes some look large; Holm's correction allows for that. (Student 1908;
Fisher 1935; Holm 1979)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import UsageError, missing_extra
from tinyprune.experiments.results import SPLITS, grouped
from tinyprune.io.tables import Record

LEVEL = 0.01  # bits per character: a difference within this is of no consequence
CONFIDENCE = 0.975  # one-sided
POWER, ERROR = 0.8, 0.05  # how surely a difference is seen; the chance of a false one
FLIPS = 2**17  # combinations of signs that are tried: all of them up to 17 seeds, else as many random ones


def scipy_stats() -> Any:
    """Return the module scipy.stats. Raises MissingExtraError if SciPy is not installed."""
    try:
        from scipy import stats
    except ImportError as error:
        raise missing_extra("SciPy's t distribution", "studies", __name__) from error
    return stats


def compared(rows: Sequence[Record], *references: str) -> list[Record]:
    """Compare every method with each reference at each number of heads that both have with two seeds at least.

    Args:
        rows: of results.csv, both splits.
        references: names of methods. Two references are compared once, with the first of them as the reference.

    Returns a record for each, see `difference` and `judged`. Raises MissingExtraError if SciPy is not installed.
    """
    records = []
    for i, reference in enumerate(references):
        for here in grouped(rows, "heads_open").values():
            methods = dict.fromkeys(r["method"] for r in here)
            for method in (name for name in methods if name not in references[: i + 1]):
                if len(common_seeds(here, method, reference)) > 1:
                    records.append(difference(here, method, reference))
    return judged(records)


def common_seeds(rows: Sequence[Record], *methods: str) -> list[Any]:
    """Return the seeds that all of these methods have, rising."""
    seeds = [{r["seed"] for r in rows if r["method"] == method} for method in methods]
    return sorted(set.intersection(*seeds))


def joined(*studies: Sequence[Record]) -> list[Record]:
    """Return the rows of several studies as those of one, in which a seed is a pair (study, seed).

    A seed is another baseline on another kind of machine, so studies of the same seeds can be two samples. The models
    of a pair come from one study. Raises UsageError if two studies have a model in common, which would count twice.
    """
    rows = [row | {"seed": (i, row["seed"])} for i, study in enumerate(studies) for row in study]
    for own in grouped(rows, "method", "heads_open", "split", "bits_per_character").values():
        if len({row["seed"][0] for row in own}) > 1:
            model = f"{own[0]['method']}, {own[0]['heads_open']} heads, seed {own[0]['seed'][1]}"
            raise UsageError(f"studies must have no model in common, got {model} twice")
    return rows


def difference(rows: Sequence[Record], method: str, reference: str) -> Record:
    """Compare two methods that have two seeds in common, by the rows of models of one size, both splits.

    Returns what `estimate` does of the means of both splits, bits per character more than the reference (above 0 the
    reference is better), and:
        valid, test: the difference on each split.
    """
    seeds = common_seeds(rows, method, reference)
    bits = {(r["method"], r["seed"], r["split"]): r["bits_per_character"] for r in rows}
    more = np.array([[bits[method, i, split] - bits[reference, i, split] for i in seeds] for split in SPLITS])
    names = {"method": method, "reference": reference, "heads_open": rows[0]["heads_open"]}
    return names | estimate(more.mean(0)) | dict(zip(SPLITS, more.mean(1).tolist(), strict=True))


def estimate(d: NDArray) -> Record:
    """Return what n differences (n,) of two methods on the same n baselines say; n is 2 at least.

    Returns:
        difference: their mean.   low, high: its 95 % interval.
        p: the chance of so large a mean where there is no difference, by the paired t test.
        p_flip: the same by the sign-flip test.
        smallest: the difference that a study of this size sees four times in five.
        seeds: n.
    """
    stats, n = scipy_stats(), len(d)
    mean, error, half = mean_of_samples(d)
    flips = {"permutation_type": "samples", "n_resamples": FLIPS, "rng": np.random.default_rng(0), "batch": 2**13}
    return {
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "p": 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0),
        "p_flip": float(stats.permutation_test((d,), np.mean, vectorized=True, **flips).pvalue),
        "smallest": half + float(stats.t.ppf(POWER, n - 1)) * error,
        "seeds": n,
    }


def mean_of_samples(d: NDArray) -> tuple[float, float, float]:
    """Return the mean of n samples (n,), its standard error and half of its 95 % interval, n 2 at least."""
    n = len(d)
    error = float(np.std(d, ddof=1)) / math.sqrt(n)
    return float(np.mean(d)), error, float(scipy_stats().t.ppf(CONFIDENCE, n - 1)) * error


def judged(records: Sequence[Record]) -> list[Record]:
    """Return the records of one table or page, p by Holm's correction for all of them, with a verdict each.

    It is "level" if the interval lies within ± LEVEL, else "worse" or "better" if p is below ERROR and both splits have
    the same sign, else "open".
    """
    corrected = holm([r["p"] for r in records])
    return [r | {"p": p, "verdict": verdict(r | {"p": p})} for r, p in zip(records, corrected, strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values by Holm's correction: the k-th smallest of n times n − k + 1, never below one before it."""
    corrected, so_far = list(p), 0.0
    for k, i in enumerate(np.argsort(p)):
        so_far = max(so_far, min(1.0, (len(p) - k) * p[i]))
        corrected[i] = so_far
    return corrected


def verdict(r: Record) -> str:
    """Return what a comparison says, see `judged`."""
    if r["low"] > -LEVEL and r["high"] < LEVEL:
        return "level"
    if r["p"] < ERROR and r["valid"] * r["test"] > 0:
        return "worse" if r["difference"] > 0 else "better"
    return "open"
