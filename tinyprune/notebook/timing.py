"""Times of short computations, and a picture that compares speeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt

from tinyprune.plots import BLUE, GREY
from tinyprune.tables import show


def best_of_each(works: Mapping[str, Callable[[], Any]], turns: int = 7) -> dict[str, float]:
    """Call several functions in turn, and return the shortest time of each in seconds.

    Other programs can only make a call longer, and a slow moment hits all alike. The first call, which compiles, is not
    timed.
    """
    for work in works.values():
        work()
    shortest = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            shortest[name] = min(shortest[name], time.perf_counter() - start)
    return shortest


def best(work: Callable[..., Any], *arguments: Any, turns: int = 7) -> float:
    """Return the shortest of several calls in seconds; the first call is not timed."""
    return best_of_each({"": lambda: work(*arguments)}, turns)[""]


def plot_rungs(speeds: Mapping[str, float], title: str, beside: int = 0) -> None:
    """Draw a bar for each rung of a ladder, the lowest at the bottom; the last `beside` are none, and stay open.

    x is GFLOP per second on a log scale. A bar's label is how many times as fast it is as the rung below.
    """
    heights, rungs = list(speeds.values()), len(speeds) - beside
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.3 * len(heights)))
    bars = axes.barh(list(speeds), heights, height=0.7, color=BLUE)
    for bar in bars[rungs:]:
        bar.set(facecolor="white", edgecolor=GREY, hatch="////")
    faster = [f"{show(float(f'{high / low:.3g}'))}×" for low, high in pairwise(heights[:rungs])]
    axes.bar_label(bars, ["", *faster, *[""] * beside], padding=3)
    axes.set(xscale="log", xlim=(min(heights) / 2, max(heights) * 3), title=title)
    axes.set_xlabel("GFLOP per second (nominal); n×: n times as fast as the rung below")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    plt.show()
