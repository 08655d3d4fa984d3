"""The pictures of all studies, drawn from the rows of their tables.

As in `tinyprune.plots`, colour is never all that tells lines apart, and matplotlib's global settings stay unchanged.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from tinyprune.experiments.factorial import FACTORS, WITH, WITHOUT
from tinyprune.experiments.intervals import LEVEL
from tinyprune.experiments.methods import BASELINE, CHOICES, METHODS, UNPRUNED
from tinyprune.experiments.results import SPLITS
from tinyprune.io.tables import Record
from tinyprune.plots import DPI, GREY, HEAD_COLOURS, LINES, MARKERS, STYLE

ORDER = ("gates", *(method for method in METHODS if method != "gates"), "michel-global")


def look(names: Sequence[str], name: str) -> dict[str, Any]:
    """Return colour, marker and line of `name`, one of several methods.

    A method of `METHODS` looks the same in all pictures. No two of them have marker, line and filling in common.
    """
    i = (ORDER if name in ORDER else list(names)).index(name)
    turn = i // len(HEAD_COLOURS)  # how often all colours have been used
    colour = HEAD_COLOURS[i % len(HEAD_COLOURS)]
    return {
        "color": colour,
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[(i + turn) % len(LINES)],
        "markerfacecolor": "white" if (i + turn) % 2 else colour,
        "markersize": 5,
        "linewidth": 2.0 if name == "gates" else 1.2,
    }


def both(row: Record) -> float:
    """Return the mean of both splits."""
    return statistics.fmean(row[split] for split in SPLITS)


@matplotlib.style.context(STYLE)
def plot_tradeoff(summary: Sequence[Record], compared: Sequence[Record]) -> Figure:
    """Draw rows of summary.csv, quality against heads that stay, and of comparison.csv, differences from a reference.

    Returns:
        Figure with two Axes. Bits per character of each method, mean and standard deviation over seeds as error bars,
        against heads that stay; the dotted line is the model that kept all heads and was trained as long. Then the
        difference from the reference with as many heads, with its interval.
    """
    wholes = (BASELINE, UNPRUNED)
    methods = list(dict.fromkeys(r["method"] for r in summary if r["method"] not in wholes))
    figure = Figure(figsize=(10, 4.6), dpi=DPI, layout="constrained")
    by_heads, difference = figure.subplots(1, 2)
    by_heads.set(ylabel="bits per character")
    reference = compared[0]["reference"] if compared else ""
    difference.set(ylabel=f"bits per character more than {reference} (below 0: better)")
    for level in (both(r) for r in summary if r["method"] == UNPRUNED):
        by_heads.axhline(level, color=GREY, linestyle=":", linewidth=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        by_heads.annotate("all heads, trained as long", (0, level), (3, -9), color=GREY, **where)
    # a little apart, so that error bars do not hide each other
    offsets = np.linspace(-0.35, 0.35, len(methods)) if len(methods) > 1 else np.zeros(1)
    for method, offset in zip(methods, offsets, strict=True):
        own = [r for r in summary if r["method"] == method]
        style = {"capsize": 2, "elinewidth": 0.8} | look(methods, method)
        points = sorted((r["heads_open"], both(r), r["spread"] or 0.0) for r in own)
        x, y, error = np.array(points).T
        by_heads.errorbar(x + offset, y, error, label=method, **style)
        paired = [r for r in compared if (r["method"], r["reference"]) == (method, reference)]
        if paired:
            points = sorted((r["heads_open"], r["difference"], r["high"]) for r in paired)
            x, y, high = np.array(points).T
            difference.errorbar(x + offset, y, high - y, **style)
    difference.axhspan(-LEVEL, LEVEL, color=GREY, alpha=0.2, linewidth=0)
    difference.axhline(0, color="black", linewidth=0.8)
    for axes in (by_heads, difference):
        axes.set(xlabel="heads that stay", xlim=(0, summary[0]["heads_total"] + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=min(6, len(methods)), frameon=False, fontsize=8)
    seeds = max(r["seeds"] for r in summary)
    said = f"both splits; left: mean and standard deviation over {seeds} seeds"
    figure.suptitle(f"{said}; right: 95 % interval, grey: level", fontsize=9)
    return figure


@matplotlib.style.context(STYLE)
def plot_differences(compared: Sequence[Record]) -> Figure:
    """Draw a row for each one of comparison.csv: the mean difference with its interval, and a dot for each split.

    Returns:
        Figure with one Axes, x in bits per character. In the grey band two methods are level.
    """
    figure = Figure(figsize=(7.5, 1.1 + 0.3 * len(compared)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="bits per character more than the reference (left of 0: better)")
    axes.axvspan(-LEVEL, LEVEL, color=GREY, alpha=0.2, linewidth=0, label="level")
    axes.axvline(0, color="black", linewidth=0.8)
    for place, r in enumerate(compared):
        axes.plot([r["low"], r["high"]], [place] * 2, color="black", linewidth=1.5)
        for split, color, marker in (("valid", HEAD_COLOURS[0], "o"), ("test", HEAD_COLOURS[1], "s")):
            label = split if not place else None
            axes.plot(r[split], place, marker, color=color, markersize=5, label=label)
    names = [f"{r['method']} − {r['reference']} ({r['heads_open']} heads)" for r in compared]
    axes.set(yticks=range(len(compared)), yticklabels=names, ylim=(len(compared) - 0.5, -0.5))
    axes.legend(loc="best", frameon=False, fontsize=8)
    return figure


@matplotlib.style.context(STYLE)
def plot_effects(effects: Sequence[Record]) -> Figure:
    """Draw rows of effects.csv: what each part of the recipe changes, without the other parts and with them.

    Returns:
        Figure with an Axes for each number of heads, x in bits per character, left of 0 where the part helps.
    """
    sizes = list(dict.fromkeys(r["heads_open"] for r in effects))
    order = itertools.product(FACTORS, CHOICES)
    names = [name for name in order if name in {(r["factor"], r["by"]) for r in effects}]
    said = {"choice": "choice: {}, not random", "repair": "repair, heads by {}"}
    said["distillation"] = "distillation, heads by {}"
    figure = Figure(figsize=(4.9 + 2.3 * len(sizes), 1.4 + 0.36 * len(names)), dpi=DPI, layout="constrained")
    by_size = figure.subplots(1, len(sizes), squeeze=False, sharex=True, sharey=True)[0]
    for axes, heads in zip(by_size, sizes, strict=True):
        axes.set(title=f"{heads} heads stay", xlabel="bits per character (left of 0: it helps)")
        axes.axvspan(-LEVEL, LEVEL, color=GREY, alpha=0.2, linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
        for given, y, colour, marker, fill in (
            (WITHOUT, -0.15, HEAD_COLOURS[0], "o", "white"),
            (WITH, 0.15, HEAD_COLOURS[1], "s", HEAD_COLOURS[1]),
        ):
            here = [r for r in effects if (r["heads_open"], r["given"]) == (heads, given)]
            own = {(r["factor"], r["by"]): r for r in here}
            x, low, high = np.transpose([[own[name][key] for key in ("difference", "low", "high")] for name in names])
            style = {"color": colour, "fmt": marker, "markerfacecolor": fill, "markersize": 5, "capsize": 2}
            axes.errorbar(x, np.arange(len(names)) + y, xerr=[x - low, high - x], label=given, **style)
    labels = [said[factor].format(by) for factor, by in names]
    by_size[0].set(yticks=range(len(names)), yticklabels=labels, ylim=(len(names) - 0.5, -0.5))
    lines, labels = by_size[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


@matplotlib.style.context(STYLE)
def plot_ratios(summary: Sequence[Record]) -> Figure:
    """Draw how many times as high perplexity is as the whole model's, by rows of `compare.summarise`.

    Returns:
        Figure with an Axes for pruned, repaired and healed models of each text, with a common logarithmic scale, and a
        line for each method and kind of parts, against the parameters that stay. Intervals may end outside.
    """
    rows = [row for row in summary if row["method"] != "whole"]
    shown = list(dict.fromkeys((row["text"], row["model"]) for row in rows))
    names = list(dict.fromkeys(f"{row['method']}, {row['parts']}" for row in rows))
    figure = Figure(figsize=(1.4 + 2.8 * len(shown), 4.2), dpi=DPI, layout="constrained")
    by_kind = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    alone = len({row["share"] for row in rows}) < 2  # then methods stand side by side
    times = [row["times"] for row in rows] or [1.0]
    lowest, highest = 0.8 * min(times), 1.25 * max(times)  # of few seeds an interval can span many powers of ten
    lines: dict[str, Any] = {}
    for axes, (text, model) in zip(by_kind, shown, strict=True):
        axes.set(title=f"{model}, text: {text}", xlabel="parameters that stay, %")
        for i, name in enumerate(names):
            here = [r for r in rows if (r["text"], r["model"]) == (text, model)]
            own = [r for r in here if f"{r['method']}, {r['parts']}" == name]
            x = [i if alone else 100 * r["share"] for r in own]
            y = [r["times"] for r in own]
            ends = [[r["times"] - r["low"] for r in own], [r["high"] - r["times"] for r in own]]
            style = {"capsize": 2, "elinewidth": 0.8, "marker": MARKERS[i % len(MARKERS)]}
            colour = HEAD_COLOURS[i % len(HEAD_COLOURS)]
            lines[name] = axes.errorbar(x, y, ends, color=colour, **style)
        if alone and rows:
            axes.set(xticks=[], xlabel=f"{100 * rows[0]['share']:g} % of the parameters stay")
        axes.set_yscale("log")
        axes.set_ylim(lowest, highest)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5) if highest < 20 * lowest else (1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {value:g}"))
        axes.yaxis.minorticks_off()
        axes.grid(alpha=0.3, linewidth=0.5)
    by_kind[0].set_ylabel("perplexity, the whole model's = 1")
    below = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend([lines[name] for name in names], names, ncols=min(4, len(names)), **below)
    return figure


@matplotlib.style.context(STYLE)
def plot_atlas(rows: Sequence[Record]) -> Figure:
    """Draw what a model loses without a part, by phenomenon, from the rows of `atlas.Atlas.rows`.

    Returns:
        Figure with an Axes for heads and one for the units of layers, where there are any: a column for each part, a
        row for each phenomenon. Red: fewer pairs are right without the part. Both have one scale, in points.
    """
    own = [row for row in rows if row["level"] == "phenomenon"]
    names = list(dict.fromkeys(row["name"] for row in own))
    panels = {"heads, by layer": [r for r in own if r["head"] != "units"]}
    panels |= {"units": units} if (units := [r for r in own if r["head"] == "units"]) else {}
    widths = [len(panel) / len(names) for panel in panels.values()]
    shares = [max(width / sum(widths), 0.15) for width in widths]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=shares)[0]
    most = 100 * max((abs(row["change"]) for row in own), default=0) or 1
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        matrix = 100 * np.reshape([row["change"] for row in panel], (-1, len(names))).T
        image = ax.imshow(matrix, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        layers = [row["layer"] for row in panel[:: len(names)]]
        first = [i for i, layer in enumerate(layers) if i == 0 or layer != layers[i - 1]]
        shown = first[:: max(1, len(first) // (16 if ax is axes[0] else 4))]
        ax.set(title=title, xlabel="layer", xticks=shown, xticklabels=[layers[i] for i in shown])
    axes[0].set(yticks=range(len(names)), yticklabels=[name.replace("_", " ") for name in names])
    figure.colorbar(image, ax=axes, label="points of accuracy", shrink=0.9)
    return figure
