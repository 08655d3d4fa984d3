"""Trade-off: quality against the number of heads that stay, by every method, and whether methods agree on the heads."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.intervals import compared
from tinyprune.experiments.methods import BASELINE, SMALL, SMALL_LONGER, UNPRUNED
from tinyprune.experiments.pictures import plot_agreement, plot_differences, plot_layers, plot_tradeoff
from tinyprune.tables import Record


def entries(plan: Plan) -> list[Entry]:
    """Every method at every share of the heads, and what they are held against."""
    made, methods = [], (*plan.methods, SMALL, SMALL_LONGER)
    for config in plan.configs():
        made += [plan.entry(name, config, name) for name in (BASELINE, UNPRUNED)]
        made += [plan.entry(method, config, method, share) for method in methods for share in plan.shares]
    return made


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of (n,) and (n,): −1 … 1, or 0 if all values of one of them are equal."""
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


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
    """Compare every method with gates, Michel's criterion and random heads, and their scores with each other."""
    found = [r for method in ("gates", "michel", "random") for r in compared(done.tables["results"], method)]
    return {"comparison": found, "agreement": agreement(done)}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the pictures."""
    rows, found = done.tables["results"], done.tables["comparison"]
    caption, figure = "Bits per character against heads that stay, with error bars", plot_tradeoff(rows, found)
    if len({r["heads_open"] for r in found}) == 1:
        of = found[0]["reference"]
        caption = f"How many more bits per character than {of} each method needs, with intervals"
        figure = plot_differences([r for r in found if r["reference"] == of])
    yield "tradeoff", caption, figure
    yield "kept", "Heads that stay in each layer, for each method", plot_layers(rows)
    if agreed := done.tables["agreement"]:
        yield "agreement", "Rank correlation between the methods' scores of the heads", plot_agreement(agreed)


STUDY = Study(entries, tables, pictures)
