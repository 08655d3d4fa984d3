"""Do the methods agree on which heads matter? Spearman's rank correlation of the scores that they gave.

A learned method's score of a head is its log_alpha at the end of the gate stage.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import Entry
from tinyprune.tables import Record


def ranks(values: ArrayLike) -> NDArray:
    """Rank of each value from 0 on; equal ones share the mean of theirs. (n,) -> (n,)."""
    values = np.asarray(values, float)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, −1 … 1; 0 if one of them does not distinguish anything."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size else 0.0


def nearest_share(entries: Sequence[Entry], share: float = 0.5) -> float | None:
    """Of the shares of heads in a study, the one nearest to `share`."""
    shares = {entry.target_share for entry in entries if entry.target_share is not None}
    return min(shares, key=lambda s: (abs(s - share), s), default=None)


def agreement(entries: Sequence[Entry], store: Store) -> list[Record]:
    """A record for each pair of methods, at the share of heads nearest to one half: mean over the seeds."""
    half = nearest_share(entries)
    scores: dict[str, dict[int, NDArray]] = {}
    for entry in entries:
        record = store.record(entry.cell)
        if entry.target_share == half and record and "scores" in record:
            scores.setdefault(entry.method, {})[entry.seed] = np.concatenate(record["scores"])
    return [
        {
            "method": a,
            "other": b,
            "rank_correlation": statistics.fmean(rank_correlation(own[seed], scores[b][seed]) for seed in own),
            "seeds": len(own),
        }
        for a, own in scores.items()
        for b in scores
    ]
