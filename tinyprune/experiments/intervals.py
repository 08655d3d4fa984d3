"""Differences between methods: what a study can say of them, with how much certainty.

Each seed is a baseline, and a bad baseline is bad for every method, so methods are compared seed by seed. With as many
heads, method m and seed i have bits y[m, i] = mean of m + effect of i + rest, and

    d = mean over i of y[m, i] − y[reference, i]          standard error = √(2 s² / seeds)

where s² is the variance of the rest, pooled over all methods that start from the baseline and over the seeds, with
(methods − 1) · (seeds − 1) degrees of freedom. A model that starts from new weights shares no baseline with them, and
its s² is that of the two methods alone. An interval holds the true difference in 95 % of all studies with other seeds;
it says nothing of other texts. A pooled variance assumes that all methods vary alike. Where some do not, look at the
interval of the pair alone, too. Where many differences are tested, chance makes some look large; Holm's correction
allows for that. (Student 1908; Holm 1979)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyprune.errors import missing_extra
from tinyprune.experiments.results import SPLITS, grouped
from tinyprune.io.tables import Record

LEVEL = 0.01  # bits per character: a difference within this is of no consequence
CONFIDENCE = 0.975  # one-sided
POWER, ERROR = 0.8, 0.05  # how surely a difference is seen; the chance of a false one


def student() -> Any:
    """Return SciPy's t distribution. Raises MissingExtraError if SciPy is not installed."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise missing_extra("SciPy's t distribution", "studies", __name__) from error
    return t


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


def common_seeds(rows: Sequence[Record], *methods: str) -> list[int]:
    """Return the seeds that all of these methods have, rising."""
    seeds = [{r["seed"] for r in rows if r["method"] == method} for method in methods]
    return sorted(set.intersection(*seeds))


def difference(rows: Sequence[Record], method: str, reference: str) -> Record:
    """Compare two methods that have two seeds in common, by the rows of models of one size, both splits.

    Returns:
        difference: bits per character more than the reference, mean of both splits; above 0 the reference is better.
        low, high: its 95 % interval.   valid, test: the difference on each split.
        alone_low, alone_high: the interval from these two methods alone, that of a paired t test.
        p: chance of so large a difference where there is none.
        smallest: the difference that a study of this size sees four times in five.
    """
    t, seeds = student(), common_seeds(rows, method, reference)
    bits = {(r["method"], r["seed"], r["split"]): r["bits_per_character"] for r in rows}
    alike = {r["method"] for r in rows if r["start"] == "baseline"}
    names = alike if {method, reference} <= alike else {method, reference}
    names = sorted(m for m in names if set(seeds) <= set(common_seeds(rows, m)))
    y = np.array([[[bits[m, seed, split] for seed in seeds] for m in names] for split in SPLITS])
    valid, test = (y[:, names.index(method)] - y[:, names.index(reference)]).mean(1).tolist()
    y, d = y.mean(0), (valid + test) / 2
    own = (y[names.index(method)] - y[names.index(reference)]).std(ddof=1) / np.sqrt(len(seeds))
    alone = float(t.ppf(CONFIDENCE, len(seeds) - 1) * own)
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    df = (len(names) - 1) * (len(seeds) - 1)
    error = float(np.sqrt((rest**2).sum() / df * 2 / len(seeds)))
    half = float(t.ppf(CONFIDENCE, df)) * error
    return {
        "method": method,
        "reference": reference,
        "heads_open": rows[0]["heads_open"],
        "difference": d,
        "low": d - half,
        "high": d + half,
        "alone_low": d - alone,
        "alone_high": d + alone,
        "valid": valid,
        "test": test,
        "p": 2 * float(t.sf(abs(d) / error, df)) if error else float(d == 0),
        "smallest": half + float(t.ppf(POWER, df)) * error,
        "seeds": len(seeds),
    }


def judged(records: Sequence[Record]) -> list[Record]:
    """Return the records of one table, p by Holm's correction for all of them, with a verdict each.

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
