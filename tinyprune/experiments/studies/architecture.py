"""Architecture: must a head own a share of the feed-forward block, or is it better to remove both apart?

*tied* are head networks: a head owns N hidden units, and they go together. *untied* is the Transformer-XL with the same
sizes, F = H · N, whose heads and whose blocks of N units are removed each for itself, until as many parameters are
left. What tied gates can choose, untied ones can choose, too.

With `model.persistent = "softmax"` *tied* is All-attention as published, F = N, and *untied* keeps the initial weights
that were best for it (`tuning-pydoc`). With `--methods=` both are only trained: are they equally good?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.intervals import common_seeds, difference, judged
from tinyprune.experiments.methods import BASELINE, UNPRUNED
from tinyprune.experiments.pictures import plot_differences
from tinyprune.experiments.results import grouped
from tinyprune.tables import Record


def entries(plan: Plan) -> list[Entry]:
    """Return both architectures, whole and with every method at every share of their parts' parameters."""
    model, made = plan.config.model, []
    F = model.H * model.N if model.networks else model.N
    untied = {"kind": "transformer-xl", "N": 0, "persistent": "softmax", "F": F, "U": F // model.H}
    untied |= {} if model.networks else {"init_gain": 2.0}
    changes: dict[str, dict[str, Any]] = {"tied": {}, "untied": untied}
    for name, options in changes.items():
        for config in plan.configs(plan.config.with_options({f"model.{k}": v for k, v in options.items()})):
            whole, pruned = ((BASELINE, UNPRUNED), plan.methods) if plan.methods else ((BASELINE,), ())
            made += [plan.entry(f"{method}, {name}", config, method) for method in whole]
            for method in pruned:
                made += [plan.entry(f"{method}, {name}", config, method, share) for share in plan.shares]
    return made


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare the untied model with the tied one, method by method."""
    records = []
    # two architectures have no baseline in common: each difference has a variance of its own
    for rows in grouped([row | {"start": row["kind"]} for row in done.tables["results"]], "heads_open").values():
        methods = dict.fromkeys(row["method"].rpartition(", ")[0] for row in rows)
        pairs = [(f"{method}, untied", f"{method}, tied") for method in methods]
        records += [difference(rows, *pair) for pair in pairs if len(common_seeds(rows, *pair)) > 1]
    return {"comparison": judged(records)}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the only picture."""
    caption = "How many more bits per character the untied model needs, for each method, with intervals"
    if done.tables["comparison"]:
        yield "differences", caption, plot_differences(done.tables["comparison"])


STUDY = Study(entries, tables, pictures)
