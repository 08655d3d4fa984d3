"""Tuning: the same trials of learning rate, initial weights and weight decay for every kind of model.

They are compared on the validation split, with a seed that no other study uses.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import matplotlib.style
from matplotlib.figure import Figure

from tinyprune.experiments.drawing import LINES, MARKERS
from tinyprune.experiments.kinds import CHANGES as KINDS_CHANGES
from tinyprune.experiments.kinds import models, with_settings
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import rows_of
from tinyprune.plots import DPI, HEAD_COLOURS, STYLE
from tinyprune.tables import Record

RATES = (2e-3, 4e-3, 8e-3)
# `init_gain`, on the range of the first matrices, and weight decay
STARTS = ((1.0, 0.01), (2.0, 0.01), (2.0, 0.1), (4.0, 0.01), (8.0, 0.01))


def entries(plan: Plan) -> list[Entry]:
    """A whole model for each kind and each combination of the settings."""
    made = []
    for kind, model in models(plan.config.model).items():
        for lr, (gain, decay) in itertools.product(RATES, STARTS):
            changed = with_settings(dataclasses.replace(plan.config, model=model), lr, gain, decay)
            made += [plan.entry(title(kind, lr, gain, decay), config, "baseline") for config in plan.configs(changed)]
    return made


def title(kind: str, lr: float, gain: float, decay: float) -> str:
    """Return the name of a trial in the tables."""
    return f"{kind}, learning rate {lr:g}, gain {gain:g}, decay {decay:g}"


@matplotlib.style.context(STYLE)
def plot_tuning(rows: Sequence[Record]) -> Figure:
    """Draw bits on the validation split against the learning rate: an Axes for each kind, a line for the others."""
    kinds = list(dict.fromkeys(r["method"].split(",")[0] for r in rows))
    figure = Figure(figsize=(2 + 2.4 * len(kinds), 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for i, (gain, decay) in enumerate(STARTS):
            bits = [_mean(rows, title(kind, lr, gain, decay)) for lr in RATES]
            style = {"color": HEAD_COLOURS[i], "linestyle": LINES[i % len(LINES)], "marker": MARKERS[i]}
            axes.plot(RATES, bits, label=f"gain {gain:g}, decay {decay:g}", **style)
        axes.set(title=kind, xscale="log", xlabel="learning rate")
        axes.set_xticks(RATES, [f"{lr:g}" for lr in RATES])
        axes.minorticks_off()
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("bits per character (validation)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _mean(rows: Sequence[Record], method: str) -> float:
    bits = [r["bits_per_character"] for r in rows_of(rows, method, "valid")]
    return sum(bits) / len(bits)


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the only picture."""
    yield "tuning", "Bits per character against the learning rate", plot_tuning(done.tables["results"])


CHANGES = KINDS_CHANGES | {"seed": 0, "train.steps": 1500}
STUDY = Study(entries, lambda done: {"comparison": []}, pictures, changes=CHANGES, split="valid", seeds=1)
