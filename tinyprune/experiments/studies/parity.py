"""Parity: whole models of every kind at equal parameters and steps, over lengths and widths; and what causes a gap.

Each kind has its own settings, found by the same trials (`tuning`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tinyprune.config import RunConfig
from tinyprune.experiments.drawing import draw_seeds, look
from tinyprune.experiments.kinds import ATTENTION, CHANGES, NETWORKS, SETTINGS, XL, runs, with_settings
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import compare, rows_of, summarise
from tinyprune.plots import DPI, STYLE
from tinyprune.tables import Record

# The first matrices as in the paper's release; and persistent vectors as those of All-attention's authors beside them.
RELEASE, ORIGINAL = "all-attention, gain 1", "all-attention, gain 1, original persistent vectors"
# With biases of queries, keys and values: every persistent score then has a learned bias of its own, bq · pk_n.
BIASED = "all-attention, learned biases"
# With Transformer-XL's settings: half the learning rate, which the validation split of a longer text prefers.
LOWER = "head-networks, lower learning rate"
# From the published heads to heads with networks, one change after the other, and the model that they are to equal.
CAUSES = (RELEASE, ORIGINAL, ATTENTION, BIASED, NETWORKS, LOWER, XL)
# Steps, up to those that are configured. The shortest training is also that of the causes.
LENGTHS = {1500: CAUSES, 3500: (ATTENTION, NETWORKS, LOWER, XL), 14_000: (ATTENTION, LOWER, XL)}
# With twice the width and the learning rate of the preset `small`: higher ones are worse on the validation split. Wide
# models have four times the parameters, so only the whole study has them.
WIDE_STEPS, WIDE_RATE, WIDE_KINDS = 3500, 1e-3, (ATTENTION, LOWER, XL)
FEW_SEEDS = 3  # of the longest training, and of wide models


def entries(plan: Plan) -> list[Entry]:
    """Whole models of every kind, each length with a schedule of its own; then some of twice the width."""
    configs = by_kind(plan.config)
    made = []
    for steps, kinds in lengths(plan.config.train.steps).items():
        seeds = plan.seeds if steps < max(LENGTHS) else FEW_SEEDS
        for kind in kinds:
            config = with_steps(configs[kind], steps)
            made += [plan.entry(title(kind, steps), c, "baseline") for c in plan.configs(config)[:seeds]]
    if plan.config.train.steps >= max(LENGTHS):
        model = plan.config.model
        configs = by_kind(plan.config.with_options({"model.D": 2 * model.D, "model.N": 2 * model.N}))
        for kind in WIDE_KINDS:
            own = with_steps(configs[kind], WIDE_STEPS)
            config = with_settings(own, WIDE_RATE, own.model.init_gain, own.train.weight_decay)
            made += [plan.entry(wide_title(kind), c, "baseline") for c in plan.configs(config)[:FEW_SEEDS]]
    return made


def by_kind(config: RunConfig) -> dict[str, RunConfig]:
    """Return a run of everything that is compared, by name."""
    configs = runs(config)
    own = configs[ATTENTION]
    release = {"init_gain": 1.0}
    changes = {RELEASE: release, ORIGINAL: release | {"persistent_init": "original"}, BIASED: {"bias": "layers"}}
    for name, change in changes.items():
        configs[name] = dataclasses.replace(own, model=dataclasses.replace(own.model, **change))
    configs[LOWER] = with_settings(configs[NETWORKS], **SETTINGS[XL])
    return configs


def lengths(most: int) -> dict[int, tuple[str, ...]]:
    """Return which kinds are trained for which numbers of steps; none is larger than `most`."""
    found: dict[int, tuple[str, ...]] = {}
    for steps, kinds in LENGTHS.items():
        found.setdefault(min(steps, most), kinds)
    return found


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """Return the run with another length of its first stage."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def title(kind: str, steps: int) -> str:
    """Return the name of a kind, trained for so many steps, in the tables."""
    return f"{kind}: {steps} steps"


def wide_title(kind: str) -> str:
    """Return the name of a kind with twice the width in the tables."""
    return title(f"{kind}, twice as wide", WIDE_STEPS)


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare the kinds with Transformer-XL at each length and width."""
    groups: dict[str, list[Record]] = {}  # by what follows the kind in the names
    for row in done.tables["results"]:
        kind = max((kind for kind in CAUSES if row["method"].startswith(kind)), key=len)
        groups.setdefault(row["method"].removeprefix(kind), []).append(row)
    return {"comparison": [r for end, rows in groups.items() for r in compare(rows, XL + end)]}


@matplotlib.style.context(STYLE)
def plot_parity(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw each change on the way from one kind to the next, and bits against steps if there are several lengths."""
    summary = {r["method"]: r for r in summarise(rows, split)}
    measured = sorted({int(name.split(": ")[1].split()[0]) for name in summary})
    several = len(measured) > 1
    figure = Figure(figsize=(9.5 if several else 6, 3.2), dpi=DPI, layout="constrained")
    by_cause, *others = figure.subplots(1, 1 + several, squeeze=False, width_ratios=(1.1, 1)[: 1 + several])[0]
    for by_steps in others:
        _draw_steps(by_steps, summary, measured, split)
    own = {kind: rows_of(rows, title(kind, measured[0]), split) for kind in CAUSES}
    bits = {kind.replace(", ", ",\n", 1): [r["bits_per_character"] for r in found] for kind, found in own.items()}
    draw_seeds(by_cause, bits, [look(CAUSES, kind)["color"] for kind in CAUSES])
    by_cause.set_xlabel(f"bits per character ({split}) after {measured[0]:,} steps")
    return figure


def _draw_steps(axes: Axes, summary: dict[str, Record], measured: Sequence[int], split: str) -> None:
    """Draw mean and standard deviation against steps, a line for each kind that is trained for several lengths."""
    for kind in CAUSES:
        points = [(steps, summary[title(kind, steps)]) for steps in measured if title(kind, steps) in summary]
        if len(points) < 2:
            continue
        x = [steps for steps, _ in points]
        bits, error = [r["bits_per_character"] for _, r in points], [r["spread"] or 0.0 for _, r in points]
        axes.errorbar(x, bits, error, label=kind, capsize=2, elinewidth=0.8, **look(CAUSES, kind))
    axes.set(xscale="log", xlabel="steps", ylabel=f"bits per character ({split})")
    axes.set_xticks(measured, [f"{steps:,}" for steps in measured])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, columnspacing=1)


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the only picture."""
    caption = "What each change contributes"
    if len({entry.cell.config.train.steps for entry in done.entries}) > 1:
        caption += ", and bits per character of whole models against steps"
    yield "parity", caption, plot_parity(done.tables["results"])


STUDY = Study(entries, tables, pictures, changes=CHANGES | {"train.steps": max(LENGTHS)}, seeds=5, equal="parameters")
