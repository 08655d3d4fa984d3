"""What the pictures of several studies share: as in `tinyprune.plots`, colour is never all that tells lines apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tinyprune.experiments.cells import METHODS
from tinyprune.experiments.results import spread
from tinyprune.plots import HEAD_COLOURS
from tinyprune.tables import Record

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8", "H", ".")
LINES = ("-", "--", "-.", ":")
ORDER = ("gates", *(method for method in METHODS if method != "gates"), "michel-global")
MEASURES = {
    "parameters": "parameters",
    "multiply_adds_per_token": "multiply-adds a token",
    "ms_per_1k_tokens": "ms per 1,000 tokens",
}


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


def means(rows: Sequence[Record], x: str) -> tuple[NDArray, NDArray, NDArray]:
    """For each number of heads: mean of `x`, mean of bits per character and their spread over seeds, by rising x."""
    groups: dict[int, list[Record]] = {}
    for row in rows:
        groups.setdefault(row["heads_open"], []).append(row)
    points = sorted(
        (
            statistics.fmean(r[x] for r in group),
            statistics.fmean(r["bits_per_character"] for r in group),
            spread([r["bits_per_character"] for r in group]) or 0.0,
        )
        for group in groups.values()
    )
    return tuple(np.array(points).T)


def draw_seeds(axes: Axes, values: dict[str, Sequence[float]], colours: Sequence[str] = HEAD_COLOURS[:1]) -> None:
    """Draw a row for each name, the first on top: a dot for each seed, a bar at their mean; colours take turns."""
    for place, own in enumerate(values.values()):
        axes.plot(own, [place] * len(own), "o", color=colours[place % len(colours)], alpha=0.6, markersize=4)
        if own:
            axes.plot([statistics.fmean(own)] * 2, [place - 0.3, place + 0.3], color="black", linewidth=2)
    axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)


def name_seeds(figure: Figure, rows: Sequence[Record]) -> None:
    """Write above the picture over how many seeds it takes the mean."""
    seeds = len({r["seed"] for r in rows})
    figure.suptitle(f"mean and standard deviation over {seeds} seeds", fontsize=9)
