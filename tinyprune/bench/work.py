"""What is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

IN_A_ROW = 16  # short works that a GPU is given one after the other, as in training, before it is waited for


class Gauge(NamedTuple):
    """How much of a GPU's memory arrays take, in bytes."""

    begin: Callable[[], int]  # at present; a new peak begins
    peak: Callable[[], int]  # at most, since then


@dataclass(frozen=True)
class Work:
    """One contender's work on one shape.

    Attributes:
        run: what is timed. It returns when all is computed: a GPU has to be waited for.
        results: arrays by name that all contenders must agree on; called once, before the first `run`.
        units: how many things `run` makes (tokens, for example); times are per unit.
        gauge: of the memory that it takes; None for the process's own, in main memory.
    """

    run: Callable[[], Any]
    results: Callable[[], dict[str, NDArray]] = dict
    units: int = 1
    gauge: Gauge | None = None
