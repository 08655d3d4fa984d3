"""Ablation: gates without each of the three stabilisers of Shim et al. 2021, slower gates, and no baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from tinyprune.experiments.cells import FROM_SCRATCH, SMALL
from tinyprune.experiments.drawing import draw_seeds
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import compare
from tinyprune.plots import DPI, STYLE
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
    made = []
    for name, changes in variants.items():
        changed = dataclasses.replace(plan.config, gate=dataclasses.replace(plan.config.gate, **changes))
        for config in plan.configs(changed):
            made += [plan.entry(name, config, "gates", share) for share in plan.shares]
    for name, method in (("gates from scratch", FROM_SCRATCH), ("small from scratch", SMALL)):
        for config in plan.configs():
            made += [plan.entry(name, config, method, share) for share in plan.shares]
    return made


@matplotlib.style.context(STYLE)
def plot_ablation(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw bits per character: an Axes for each number of heads, a row for each variant, dots for seeds, their mean."""
    own = [r for r in rows if r["split"] == split]
    variants = list(dict.fromkeys(r["method"] for r in own))
    counts = sorted({r["heads_open"] for r in own}, reverse=True)
    figure = Figure(figsize=(2 + 2.6 * len(counts), 1.2 + 0.32 * len(variants)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        here = [r for r in own if r["heads_open"] == count]
        draw_seeds(axes, {v: [r["bits_per_character"] for r in here if r["method"] == v] for v in variants})
        axes.set_title(f"{count} of {own[0]['heads_total']} heads")
    figure.supxlabel("bits per character (test); dots: seeds, bar: mean; left is better")
    return figure


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare every variant with all three stabilisers."""
    return {"comparison": compare(done.tables["results"], ALL_THREE)}


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the only picture."""
    yield "ablation", "Bits per character without each stabiliser", plot_ablation(done.tables["results"])


STUDY = Study(entries, tables, pictures)
