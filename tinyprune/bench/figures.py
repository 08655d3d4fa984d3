"""Figures of benchmarks, readable without colour, too: every contender has its own marker."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from tinyprune.plots import DPI, GREY, HEAD_COLOURS, LINES, MARKERS, STYLE
from tinyprune.tables import Record, show

SWEEPS = {"T": "T, attention alone", "heads": "heads in each layer, whole step", "threads": "threads, whole step"}


@matplotlib.style.context(STYLE)
def plot_benchmark(records: Sequence[Record]) -> Figure:
    """Draw the figure that fits the benchmark; see the functions below."""
    return (plot_sweeps if records[0]["benchmark"] == "memory" else plot_speeds)(records)


def look(subjects: Sequence[str], subject: str) -> dict[str, str]:
    """Choose a contender's colour and marker; ours, the first, is filled."""
    i = subjects.index(subject)
    colour = HEAD_COLOURS[i % len(HEAD_COLOURS)]
    return {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markerfacecolor": "white" if i else colour}


def plot_speeds(records: Sequence[Record]) -> Figure:
    """Draw how fast every contender is at every shape, a row for each, on a log scale.

    x is tokens per second for `generate`, else nominal GFLOP per second. Beside a peer's mark is its time over ours.
    """
    unit, label = "gflops", "GFLOP per second (nominal)"
    if "tokens_per_second" in records[0]:
        unit, label = "tokens_per_second", "tokens per second"
    shapes = list(dict.fromkeys(r["shape"] for r in records))
    subjects = list(dict.fromkeys(r["subject"] for r in records))
    figure = Figure(figsize=(7, 1.6 + 0.45 * len(shapes) + 0.2 * len(subjects)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=label, xscale="log")
    axes.set(yticks=range(len(shapes)), yticklabels=shapes, ylim=(len(shapes) - 0.4, -0.7))
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    for subject in subjects:
        own = [r for r in records if r["subject"] == subject]
        places = [shapes.index(r["shape"]) for r in own]
        axes.plot([r[unit] for r in own], places, linestyle="", label=subject, **look(subjects, subject))
    for place, shape in enumerate(shapes):
        others = [r for r in records if r["shape"] == shape and r["subject"] != subjects[0]]
        peers = sorted((r for r in others if r["ratio_to_subject"] is not None), key=lambda r: r[unit])
        for i, record in enumerate(peers):
            # neighbours alternate above and below the line
            offset = (0, -14) if i % 2 else (0, 5)
            text = f"{show(round(record['ratio_to_subject'], 2))}×"
            axes.annotate(text, (record[unit], place), offset, textcoords="offset points", ha="center")
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    axes.set_title("n×: takes n times as long as the first")
    return figure


def plot_sweeps(records: Sequence[Record]) -> Figure:
    """Draw time, and below it memory, against T, heads and threads, a column for each sweep in the records.

    T has log scales, on which what grows linearly rises like the dotted line.
    """
    sweeps = [sweep for sweep in SWEEPS if any(r["sweep"] == sweep for r in records)]
    subjects = list(dict.fromkeys(r["subject"] for r in records))
    figure = Figure(figsize=(1 + 2.7 * len(sweeps), 5.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(sweeps), squeeze=False, sharex="col")
    for row, (key, title) in zip(grid, (("median_ms", "ms"), ("peak_mib", "peak MiB")), strict=True):
        for axes, sweep in zip(row, sweeps, strict=True):
            own = [r for r in records if r["sweep"] == sweep]
            draw_sweep(axes, own, key, subjects)
            axes.set_title(f"{title} against {sweep}")
            if key == "peak_mib":
                axes.set_xlabel(SWEEPS[sweep])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=len(subjects))
    return figure


def draw_sweep(axes: Axes, records: Sequence[Record], key: str, subjects: Sequence[str]) -> None:
    """Draw a line for each contender; log scales for T, from 0 otherwise."""
    values = sorted({r["value"] for r in records})
    if records[0]["sweep"] == "T":
        axes.set(xscale="log", yscale="log")
        ours = sorted((r["value"], r[key]) for r in records if r["subject"] == records[0]["subject"])
        (first, _), (last, top) = ours[0], ours[-1]  # growth in proportion to T
        axes.plot([first, last], [top * first / last, top], color=GREY, linestyle=":", linewidth=1)
    for subject in subjects:
        points = sorted((r["value"], r[key]) for r in records if r["subject"] == subject)
        line = LINES[subjects.index(subject) % len(LINES)]
        axes.plot(*zip(*points, strict=True), label=subject, linestyle=line, **look(subjects, subject))
    axes.xaxis.set(major_locator=FixedLocator(values), minor_locator=NullLocator(), major_formatter="{x:g}")
    if records[0]["sweep"] == "T":
        axes.tick_params(axis="x", rotation=45)
    else:
        axes.set_ylim(bottom=0)
