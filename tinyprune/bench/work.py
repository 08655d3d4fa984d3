"""What is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Work:
    """One contender's work on one shape.

    Attributes:
        run: what is timed.
        results: arrays by name that all contenders must agree on; called once, before the first `run`.
        units: how many things `run` makes (tokens, for example); times are per unit.
    """

    run: Callable[[], Any]
    results: Callable[[], dict[str, NDArray]] = dict
    units: int = 1
