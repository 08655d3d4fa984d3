"""Ablation: gates without each of the three stabilisers of Shim et al. 2021, slower gates, and no baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.intervals import compared
from tinyprune.experiments.methods import FROM_SCRATCH, SMALL
from tinyprune.experiments.pictures import plot_ablation
from tinyprune.tables import Record

# The number of heads is held here, so that the warm-up is that of the target, not of lam.
WITHOUT: dict[str, dict[str, Any]] = {
    "without warm-up": {"lam_warmup": 0},
    "without initialisation": {"log_alpha_init": 0.0},
    "without output scaling": {"output_scaling": False},
}
ALL_THREE = "all three"
SLOW = "the paper's 10 × for gates"  # times the weights' learning rate; the preset has more, for far fewer steps


def entries(plan: Plan) -> list[Entry]:
    """Gates with all three stabilisers, without each, without all; slower gates; and gates from the first step on.

    Besides these, a model that never had the other heads shows what gates from the first step contribute.
    """
    none = {name: value for changes in WITHOUT.values() for name, value in changes.items()}
    variants = {ALL_THREE: {}} | WITHOUT | {"without all three": none, SLOW: {"lr_multiplier": 10.0}}
    models = [(name, "gates", changes) for name, changes in variants.items()]
    models += [("gates from scratch", FROM_SCRATCH, {}), ("small from scratch", SMALL, {})]
    return [
        plan.entry(name, config, method, share)
        for name, method, changes in models
        for config in plan.configs(plan.config.with_options({f"gate.{k}": v for k, v in changes.items()}))
        for share in plan.shares
    ]


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare every variant with all three stabilisers."""
    return {"comparison": compared(done.tables["results"], ALL_THREE)}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the only picture."""
    yield "ablation", "Bits per character without each stabiliser", plot_ablation(done.tables["results"])


STUDY = Study(entries, tables, pictures)
