"""The picture of `tinyprune bench ladder`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tinyprune.plots import BLUE, DPI, GREY, STYLE
from tinyprune.tables import Record, show


@matplotlib.style.context(STYLE)
def plot_ladder(records: Sequence[Record]) -> Figure:
    """How fast every rung is.

    Returns:
        Figure with one Axes for each ladder, one above the other: a bar for each rung, the lowest at the bottom, x in
        nominal GFLOP per second on a log scale. At its end, how many times faster it is than the rung below. What only
        stands beside the ladder has an open bar.
    """
    found = [list(rows) for _, rows in groupby(records, key=lambda record: record["ladder"])]
    rows = [len(ladder) for ladder in found]
    figure = Figure(figsize=(7, 0.9 + 0.6 * len(found) + 0.3 * sum(rows)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(found), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, ladder in zip(grid, found, strict=True):
        speeds = [record["gflops"] for record in ladder]
        faster = [record["times_faster"] for record in ladder]
        bars = axes.barh(range(len(ladder)), speeds, height=0.7, color=BLUE)
        for bar, times in list(zip(bars, faster, strict=True))[1:]:
            if times is None:
                bar.set(facecolor="white", edgecolor=GREY, hatch="////")
        axes.bar_label(
            bars, ["" if times is None else f"{show(float(f'{times:.3g}'))}×" for times in faster], padding=3
        )
        shape = ladder[-1]["shape"]
        names = [r["subject"] if r["shape"] == shape else f"{r['subject']}, {r['shape']}" for r in ladder]
        axes.set(yticks=range(len(ladder)), yticklabels=names, xscale="log", title=shape)
        axes.set_xlim(min(speeds) / 2, max(speeds) * 3)
        axes.xaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    grid[-1].set_xlabel("GFLOP per second (nominal); n×: n times faster than the rung below")
    return figure
