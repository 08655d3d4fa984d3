"""What is timed: a contender's side of a benchmark is a function that returns a `Workload`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

IN_A_ROW = 16  # short computations that a GPU gets one after the other, as in training, before it is waited for


class Gauge(NamedTuple):
    """Reads how many bytes of a GPU's memory arrays occupy."""

    begin: Callable[[], int]  # returns the bytes in use now, and starts a new peak
    peak: Callable[[], int]  # returns the peak since then


@dataclass(frozen=True)
class Workload:
    """One contender's computation at one shape."""

    run: Callable[[], Any]  # what is timed; it returns when everything is computed, on a GPU too
    results: Callable[[], dict[str, NDArray]] = dict  # on which all contenders must agree; called once, before `run`
    units: int = 1  # how many things one `run` computes (tokens, for example); times are per unit
    gauge: Gauge | None = None  # of the GPU memory it occupies; None for the process's own main memory
