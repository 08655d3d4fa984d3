"""Map: gates against one-shot criteria over the share of heads, the length of the gate stage, and healing after it.

Models that are compared have the same baseline and the same number of steps: a criterion chooses at once, and the model
that it leaves is trained for as many steps as the gate stage takes, and then heals as long. The learning rate is
constant, so that one training can be read at several lengths of healing. In the shortest gate stage the weights are
frozen.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from tinyprune.config import RunConfig
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import spread
from tinyprune.plots import DPI, STYLE
from tinyprune.tables import Record

CRITERIA = ("michel", "leave-one-out", "output-difference", "random")
STAGES = (0.03, 0.1, 0.3, 1.0)  # lengths of the gate stage, as shares of the training before it
HEALING = (0.0, 0.05, 0.2, 1.0)  # lengths of healing, as shares of the longest
MOST = 3.0  # spreads at which the picture's colours end
CHANGES = {"train.steps": 1000, "finetune.schedule": "constant", "finetune.steps": 1000}


def entries(plan: Plan) -> list[Entry]:
    """Gates with each length of their stage, and criteria, whose only training is read at all the sums of lengths."""
    stages, lengths = steps_of(STAGES, plan.config.train.steps), steps_of(HEALING, plan.config.finetune.steps)
    sums = tuple(sorted({stage + healing for stage in stages for healing in lengths}))
    made = []
    for config in plan.configs():
        for share in plan.shares:
            for steps in stages:
                own = with_stage(config, steps, frozen=steps == stages[0])
                made.append(with_readings(plan.entry(title(steps), own, "gates", share), lengths))
            alone = with_stage(config, 0, sums[-1])
            made += [with_readings(plan.entry(method, alone, method, share), sums) for method in CRITERIA]
    return made


def steps_of(shares: Sequence[float], whole: int) -> tuple[int, ...]:
    """Return shares of a number of steps, rounded; each number once."""
    return tuple(dict.fromkeys(round(share * whole) for share in shares))


def title(steps: int) -> str:
    """Return the name of gates with a stage of this length in the tables."""
    return f"gates: {steps} steps"


def with_stage(config: RunConfig, steps: int, healing: int | None = None, frozen: bool = False) -> RunConfig:
    """Return the run with a gate stage and a healing of these lengths; in a frozen stage weights do not move."""
    gate, stage = config.gate, dataclasses.replace(config.gate_train, steps=steps)
    if frozen:
        # Gates keep their learning rate, which is a multiple of the weights'; within few steps it must be larger.
        still = 1e-12
        gate = dataclasses.replace(gate, lr_multiplier=3 * gate.lr_multiplier * stage.lr / still)
        stage = dataclasses.replace(stage, lr=still)
    finetune = config.finetune if healing is None else dataclasses.replace(config.finetune, steps=healing)
    return dataclasses.replace(config, gate=gate, gate_train=stage, finetune=finetune)


def with_readings(entry: Entry, readings: tuple[int, ...]) -> Entry:
    """Return the entry with a cell that is read after these steps of healing."""
    return dataclasses.replace(entry, cell=dataclasses.replace(entry.cell, readings=readings))


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare gates with each criterion, paired by seed, at every point of the map. Above 0 gates are better."""
    bits: dict[tuple[str, int, int, int], float] = {}  # by method, heads, seed and steps after the choice
    for entry in done.entries:
        for reading in done.store.record(entry.cell)["readings"]:
            bits[entry.method, entry.cell.heads, entry.seed, reading["step"]] = reading["test"]
    seeds = sorted({entry.seed for entry in done.entries})
    heads = sorted({entry.cell.heads for entry in done.entries}, reverse=True)
    config = done.entries[0].cell.config
    found: list[Record] = []
    for count in heads:
        for stage in steps_of(STAGES, config.train.steps):
            for healing in steps_of(HEALING, config.finetune.steps):
                own = [bits[title(stage), count, seed, healing] for seed in seeds]
                for method in CRITERIA:
                    other = [bits[method, count, seed, stage + healing] for seed in seeds]
                    difference = [b - a for a, b in zip(own, other, strict=True)]
                    found.append(
                        {"heads_open": count, "gate_steps": stage, "healing": healing, "method": method}
                        | {"gates": statistics.fmean(own), "bits_per_character": statistics.fmean(other)}
                        | {"difference": statistics.fmean(difference), "spread": spread(difference)}
                        | {"seeds": len(seeds)}
                    )
    return {"comparison": [], "map": found}


@matplotlib.style.context(STYLE)
def plot_map(records: Sequence[Record]) -> Figure:
    """Draw who wins where: an Axes for each length of healing, heads that stay against the length of the gate stage.

    A field's colour is how many spreads the best criterion needs more than gates (blue: gates win), its text that
    difference in hundredths of a bit, and the criterion. Where it is less than one spread, the field is pale.
    """
    heads = sorted({r["heads_open"] for r in records}, reverse=True)
    stages, lengths = (sorted({r[name] for r in records}) for name in ("gate_steps", "healing"))
    height = max(2.6, 0.9 + 0.55 * len(heads))  # the colour bar's label needs this much
    figure = Figure(figsize=(3.1 * len(lengths), height), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    short = {"michel": "M", "leave-one-out": "L", "output-difference": "O", "random": "R"}
    for axes, healing in zip(panels, lengths, strict=True):
        colours = np.zeros((len(heads), len(stages)))
        for i, count in enumerate(heads):
            for j, stage in enumerate(stages):
                place: dict[str, Any] = {"heads_open": count, "gate_steps": stage, "healing": healing}
                field = [r for r in records if all(r[name] == value for name, value in place.items())]
                best = min(field, key=lambda r: r["bits_per_character"])
                colours[i, j] = best["difference"] / (best["spread"] or np.inf)
                text = f"{100 * best['difference']:+.1f} {short[best['method']]}"
                dark = abs(colours[i, j]) > 0.7 * MOST
                axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
        image = axes.imshow(colours, cmap="RdBu", vmin=-MOST, vmax=MOST, aspect="auto")
        axes.set(title=f"{healing:,} steps of healing", xlabel="steps of the gate stage")
        axes.set_xticks(range(len(stages)), [f"{stage:,}" for stage in stages])
        axes.set_yticks(range(len(heads)), [str(count) for count in heads])
    panels[0].set_ylabel("heads that stay")
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9)
    bar.set_label("← criterion wins   spreads   gates win →")
    figure.suptitle("bits, in hundredths, that the best criterion needs more than gates", fontsize="medium")
    return figure


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the map."""
    caption = "Where gates win and where the best criterion does: Michel, Leave-one-out, Output difference or Random"
    yield "map", caption, plot_map(done.tables["map"])


STUDY = Study(entries, tables, pictures, changes=CHANGES, seeds=5)
