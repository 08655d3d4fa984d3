"""What a study consists of (`Study`), and how large it is made (`Plan`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tinyprune.config import RunConfig
from tinyprune.errors import UsageError, nearest
from tinyprune.experiments.cells import Cell
from tinyprune.experiments.methods import METHODS
from tinyprune.experiments.store import Store
from tinyprune.tables import Record

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)  # of the heads, that stay

Picture = tuple[str, str, Figure]  # file name, caption, figure


@dataclass(frozen=True)
class Entry:
    """A cell and its name in a study's tables."""

    method: str
    cell: Cell

    @property
    def seed(self) -> int:
        """Return the cell's seed."""
        return self.cell.config.seed


def check_choices(shares: Sequence[float], total: int, methods: Sequence[str], known: Iterable[str]) -> None:
    """Raise UsageError unless `shares` of `total` heads are different numbers, and `methods` are among the `known`."""
    known = tuple(known)
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise UsageError(f"shares must be numbers from 0 to 1, got {list(shares)}")
    for method in methods:
        if method not in known:
            raise UsageError(f"methods must be among {', '.join(known)}; got {method!r}{nearest(method, known)}")
    if len(set(methods)) < len(methods):
        raise UsageError(f"methods must be different, got {', '.join(methods)}")
    heads = [round(share * total) for share in shares]
    if len(set(heads)) < len(heads):
        raise UsageError(f"shares must stand for different numbers of heads; {list(shares)} are {heads}")


@dataclass(frozen=True)
class Plan:
    """How large a study is."""

    config: RunConfig  # model, text and stages; its seed is the first one
    seeds: int = 3  # how many
    shares: Sequence[float] = SHARES
    methods: Sequence[str] = tuple(METHODS)  # pruning methods to compare
    scope: str = "global"  # where criteria compare heads, see `importance.keep_best`
    backend: str = "numba"
    digest: str | None = None  # sha256 of the text

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        check_choices(self.shares, self.config.model.heads_total, self.methods, METHODS)

    def configs(self, config: RunConfig | None = None) -> list[RunConfig]:
        """Return one configuration for each seed."""
        config = config or self.config
        return [dataclasses.replace(config, seed=config.seed + i) for i in range(self.seeds)]

    def entry(self, name: str, config: RunConfig, method: str, share: float | None = None) -> Entry:
        """Return the cell of one method that keeps a share of the heads, called `name` in the tables."""
        heads = None if share is None else round(share * self.config.model.heads_total)
        return Entry(name, Cell(config, method, heads, self.scope, self.backend, self.digest))


@dataclass(frozen=True)
class Finished:
    """A study whose cells are all done."""

    entries: Sequence[Entry]
    store: Store  # the cells' records
    tables: dict[str, list[Record]]  # by name: "results", "summary", then the study's own


@dataclass(frozen=True)
class Study:
    """Everything that one study does not share with the others."""

    entries: Callable[[Plan], list[Entry]]  # all names, shares and seeds stand for different cells
    tables: Callable[[Finished], dict[str, list[Record]]]  # by file name; "comparison" is explained in README.md
    pictures: Callable[[Finished], Iterable[Picture]]
    changes: dict[str, Any] = field(default_factory=dict)  # in the preset `experiment.PRESET`
    seeds: int = 3  # how many, if none are given
