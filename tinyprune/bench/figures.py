"""Figures of benchmarks, readable without colour, too: every contender has its own marker."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from tinyprune.plots import DPI, GREY, HEAD_COLOURS, MARKERS, STYLE
from tinyprune.tables import Record, show


@matplotlib.style.context(STYLE)
def plot_benchmark(records: Sequence[Record]) -> Figure:
    """Draw how fast every contender is at every shape, a row for each, in nominal GFLOP per second on a log scale.

    Beside a peer's mark is its time over ours.
    """
    shapes = list(dict.fromkeys(r["shape"] for r in records))
    subjects = list(dict.fromkeys(r["subject"] for r in records))
    figure = Figure(figsize=(7, 1.6 + 0.45 * len(shapes) + 0.2 * len(subjects)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="GFLOP per second (nominal)", xscale="log")
    axes.set(yticks=range(len(shapes)), yticklabels=shapes, ylim=(len(shapes) - 0.4, -0.7))
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    for i, subject in enumerate(subjects):
        own = [r for r in records if r["subject"] == subject]
        places = [shapes.index(r["shape"]) for r in own]
        colour = HEAD_COLOURS[i % len(HEAD_COLOURS)]
        look = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markerfacecolor": "white" if i else colour}
        axes.plot([r["gflops"] for r in own], places, linestyle="", label=subject, **look)  # ours, the first, is filled
    for place, shape in enumerate(shapes):
        others = [r for r in records if r["shape"] == shape and r["subject"] != subjects[0]]
        peers = sorted((r for r in others if r["ratio_to_subject"] is not None), key=lambda r: r["gflops"])
        for i, record in enumerate(peers):
            # neighbours alternate above and below the line
            offset = (0, -14) if i % 2 else (0, 5)
            text = f"{show(round(record['ratio_to_subject'], 2))}×"
            axes.annotate(text, (record["gflops"], place), offset, textcoords="offset points", ha="center")
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    axes.set_title("n×: takes n times as long as the first")
    return figure
