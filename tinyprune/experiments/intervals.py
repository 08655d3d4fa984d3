"""Differences between methods: what a study can say of them, with how much certainty.

Each seed is a baseline, and a bad baseline is bad for every method, so methods are compared seed by seed. With as many
heads, method m and seed i have bits y[m, i] = mean of m + effect of i + rest, and

    d = mean over i of y[m, i] − y[reference, i]          standard error = √(2 s² / seeds)

where s² is the variance of the rest, pooled over all methods that start from the baseline and over the seeds, with
(methods − 1) · (seeds − 1) degrees of freedom. A model that starts from new weights shares no baseline with them, and
its s² is that of the two methods alone. An interval holds the true difference in 95 % of all studies. Where many
differences are tested, chance makes some look large; Holm's correction allows for that. (Student 1908; Holm 1979)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyprune.errors import MissingExtraError, install_command
from tinyprune.experiments.results import SPLITS, both_splits, paired_differences
from tinyprune.tables import Record

LEVEL = 0.01  # bits per character: a difference within this is of no consequence
CONFIDENCE, POWER, ERROR = 0.975, 0.8, 0.05  # one-sided; how surely a difference is seen; chance of a false one


def student() -> Any:
    """Return SciPy's t distribution. Raises MissingExtraError if SciPy is not installed."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingExtraError(f"intervals need SciPy, which is not here: {install_command('studies')}") from error
    return t


def compared(rows: Sequence[Record], reference: str) -> list[Record]:
    """Compare every method with the reference at each number of heads.

    Args:
        rows: of results.csv, both splits.
        reference: name of a method.

    Returns:
        A record for each method and number of heads that the reference has, too, with two seeds at least:
        difference: bits per character more than the reference, mean of both splits; above 0 the reference is better.
        low, high: its 95 % interval.   valid, test: the difference on each split.
        p: chance of so large a difference where there is none, by Holm's correction for all in this table.
        smallest: the difference that a study of this size would see four times in five.
        verdict: "level" if the interval lies within ± LEVEL, else "worse" or "better" if p is below 0.05 and both
        splits have the same sign, else "open".

    Raises MissingExtraError if SciPy is not installed.
    """
    t, records = student(), []
    on = {split: paired_differences(rows, reference, split) for split in SPLITS}
    pairs = {(r["method"], r["heads_open"]): [r["difference"]] for r in on["valid"] if r["seeds"] > 1}
    for r in on["test"]:
        pairs.get((r["method"], r["heads_open"]), []).append(r["difference"])
    for (method, heads), (valid, test) in pairs.items():
        s, df, seeds = pooled([r for r in rows if r["heads_open"] == heads], method, reference)
        error, d = s * np.sqrt(2 / seeds), (valid + test) / 2
        half = t.ppf(CONFIDENCE, df) * error
        records.append(
            {"method": method, "reference": reference, "heads_open": heads, "difference": d}
            | {"low": d - half, "high": d + half, "valid": valid, "test": test}
            | {"p": 2 * t.sf(abs(d) / error, df) if error else float(d == 0)}
            | {"smallest": half + t.ppf(POWER, df) * error, "seeds": seeds}
        )
    for record, p in zip(records, holm([r["p"] for r in records]), strict=True):
        record["p"] = p
        record["verdict"] = verdict(record)
    return [{name: x if isinstance(x, str | int) else float(x) for name, x in r.items()} for r in records]


def pooled(rows: Sequence[Record], method: str, reference: str) -> tuple[float, int, int]:
    """Return s, its degrees of freedom and the number of seeds, see above; rows are of one number of heads.

    Methods that lack a seed of these two are left out. Bits are the mean of both splits.
    """
    bits = {(r["method"], r["seed"]): r["bits_per_character"] for r in both_splits(rows)}
    seeds = [seed for name, seed in bits if name == reference and (method, seed) in bits]
    alike = {r["method"] for r in rows if r["start"] == "baseline"}
    names = alike if {method, reference} <= alike else {method, reference}
    y = np.array([[bits[m, i] for i in seeds] for m in sorted(names) if all((m, i) in bits for i in seeds)])
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    df = (len(y) - 1) * (len(seeds) - 1)
    return float(np.sqrt((rest**2).sum() / df)), df, len(seeds)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values by Holm's correction: the k-th smallest of n times n − k + 1, never below one before it."""
    corrected, so_far = list(p), 0.0
    for k, i in enumerate(np.argsort(p)):
        so_far = max(so_far, min(1.0, (len(p) - k) * p[i]))
        corrected[i] = so_far
    return corrected


def verdict(r: Record) -> str:
    """Return what a comparison says, see `compared`."""
    if r["low"] > -LEVEL and r["high"] < LEVEL:
        return "level"
    if r["p"] < ERROR and r["valid"] * r["test"] > 0:
        return "worse" if r["difference"] > 0 else "better"
    return "open"
