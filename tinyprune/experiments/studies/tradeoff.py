"""Trade-off: quality against the number of heads that stay, by every method, and whether methods agree on the heads."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.methods import BASELINE, UNPRUNED
from tinyprune.experiments.pictures import plot_agreement, plot_beyond, plot_layers, plot_tradeoff
from tinyprune.experiments.results import paired_differences
from tinyprune.tables import Record


def entries(plan: Plan) -> list[Entry]:
    """Every method at every share of the heads, and a model that keeps all heads."""
    made = []
    for config in plan.configs():
        made += [plan.entry(name, config, name) for name in (BASELINE, UNPRUNED)]
        made += [plan.entry(method, config, method, share) for method in plan.methods for share in plan.shares]
    return made


def ranks(values: ArrayLike) -> NDArray:
    """Return the rank of each value, from 0; equal values share the mean of theirs. (n,) -> (n,) float64."""
    values = np.asarray(values, float)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of (n,) and (n,): −1 … 1, or 0 if all values of one of them are equal."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size else 0.0


def agreement(done: Finished) -> list[Record]:
    """Correlate the scores that every two methods give to the heads, where about half of the heads stay.

    A learned method's score of a head is its log_alpha at the end of the gate stage. The mean is over the seeds.
    """
    total = done.entries[0].cell.config.model.heads_total
    counts = {entry.cell.heads for entry in done.entries if entry.cell.heads is not None}
    half = min(counts, key=lambda heads: (abs(heads - total / 2), heads))
    scores: dict[str, dict[int, NDArray]] = {}
    for entry in done.entries:
        record = done.store.record(entry.cell)
        if entry.cell.heads == half and record and "scores" in record:
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


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare every method with gates and with Michel's criterion, and the methods' scores with each other."""
    found = [r for method in ("gates", "michel") for r in paired_differences(done.tables["results"], method)]
    return {"comparison": found, "agreement": agreement(done)}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the pictures."""
    rows = done.tables["results"]
    caption = "Bits per character against heads that stay, for each method, with error bars"
    yield "tradeoff", caption, plot_tradeoff(rows)
    if beyond := plot_beyond(rows):
        yield "beyond", "Bits per character more than Michel's criterion needs, for each method", beyond
    yield "kept", "Heads that stay in each layer, for each method", plot_layers(rows)
    if agreed := done.tables["agreement"]:
        yield "agreement", "Rank correlation between the methods' scores of the heads", plot_agreement(agreed)


STUDY = Study(entries, tables, pictures)
