"""The three studies as grids: which cells, and what each is called in the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyprune.config import RunConfig, load_preset, of_kind
from tinyprune.errors import UsageError
from tinyprune.experiments import STUDIES
from tinyprune.experiments.cells import FROM_SCRATCH, METHODS, SMALL, Cell, read_text

PRESET = "study"
# What a study changes in that preset. Persistent vectors, and the feed-forward block in their place, are four times as
# many as D, the paper's proportion: they are then 6 of 10 parameters of a layer.
CHANGES: dict[str, dict[str, Any]] = {"architecture": {"model.N": 512}}
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)  # of the heads that stay
KINDS = ("all-attention", "transformer-xl")
# What one finishes in three minutes: the same course, with fewer steps, sizes and seeds.
QUICK: dict[str, Any] = {"train.steps": 200, "train.warmup": 20, "gate_train.steps": 60, "finetune.steps": 40}
QUICK_SEEDS, QUICK_SHARES = 2, (0.5,)
# The three stabilisers of Shim et al. 2021, each taken away. Heads are held at a number here, so it is not lam but the
# target that a warm-up leads up to.
WITHOUT: dict[str, dict[str, Any]] = {
    "without warm-up": {"lam_warmup": 0},
    "without initialisation": {"log_alpha_init": 0.0},
    "without output scaling": {"output_scaling": False},
}

ALL_THREE = "all three"
SLOW = "the paper's 10 × for gates"  # of the weights' learning rate; the preset has more, for far fewer steps


@dataclass(frozen=True)
class Entry:
    """A cell and its name in a study's tables."""

    method: str
    target_share: float | None
    cell: Cell

    @property
    def seed(self) -> int:
        """Of the cell."""
        return self.cell.config.seed


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Attributes:
        config: model, text and stages; its seed is the first.
        seeds: how many.
        shares: of the heads that stay.
        methods: that are compared.
        scope: of the criteria, see `importance.keep_best`.
        backend: whose operations compute.
        digest: sha256 of the text.
    """

    config: RunConfig
    seeds: int = 3
    shares: Sequence[float] = SHARES
    methods: Sequence[str] = METHODS
    scope: str = "global"
    backend: str = "numba"
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise UsageError(f"shares must be numbers from 0 to 1, got {list(self.shares)}")
        for method in self.methods:
            if method not in METHODS:
                raise UsageError(f"methods must be among {', '.join(METHODS)}; got {method!r}")
        if len(set(self.methods)) < len(self.methods):
            raise UsageError(f"methods must be different, got {', '.join(self.methods)}")
        heads = [self.heads(share) for share in self.shares]
        if len(set(heads)) < len(heads):
            raise UsageError(f"shares must stand for different numbers of heads; {list(self.shares)} are {heads}")

    def configs(self, config: RunConfig | None = None) -> list[RunConfig]:
        """One configuration for each seed."""
        config = config or self.config
        return [dataclasses.replace(config, seed=config.seed + i) for i in range(self.seeds)]

    def heads(self, share: float) -> int:
        """How many heads a share of them is."""
        return round(share * self.config.model.heads_total)

    def cell(self, config: RunConfig, method: str, share: float | None = None) -> Cell:
        """The cell of one method, for a share of the heads."""
        heads = None if share is None else self.heads(share)
        return Cell(config, method, heads, self.scope, self.backend, self.digest)


def make_plan(
    study: str,
    preset: str | None = None,
    options: dict[str, Any] | None = None,
    quick: bool = False,
    seeds: int | None = None,
    shares: Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
    scope: str = "global",
    backend: str = "numba",
) -> Plan:
    """A plan from what the command line takes.

    Args:
        study: one of `STUDIES`.
        preset: of model and stages; None for `PRESET` with the study's own `CHANGES`.
        options: `{"table.key": value}`, see `RunConfig.with_options`.
        quick: fewer steps, seeds and shares, where they are not given.
    """
    changes = CHANGES.get(study, {}) if preset is None else {}
    config = load_preset(preset or PRESET).with_options(changes | (QUICK if quick else {}) | (options or {}))
    return Plan(
        config,
        (QUICK_SEEDS if quick else 3) if seeds is None else seeds,
        (QUICK_SHARES if quick else SHARES) if shares is None else shares,
        METHODS if methods is None else methods,
        scope,
        backend,
        read_text(config.data).digest,
    )


def tradeoff(plan: Plan) -> list[Entry]:
    """Quality against heads that stay, for every method, and for a model that keeps all."""
    entries = []
    for config in plan.configs():
        entries.append(Entry("baseline", None, plan.cell(config, "baseline")))
        entries.append(Entry("unpruned", None, plan.cell(config, "unpruned")))
        entries += [Entry(m, share, plan.cell(config, m, share)) for m in plan.methods for share in plan.shares]
    return entries


def ablation(plan: Plan) -> list[Entry]:
    """Gates with all three stabilisers, without each, without all; slower gates; and gates from the first step on.

    Beside the last, a model that never had the other heads shows what gates add to that.
    """
    none = {name: value for changes in WITHOUT.values() for name, value in changes.items()}
    variants = {ALL_THREE: {}} | WITHOUT | {"without all three": none, SLOW: {"lr_multiplier": 10.0}}
    entries = []
    for name, changes in variants.items():
        changed = dataclasses.replace(plan.config, gate=dataclasses.replace(plan.config.gate, **changes))
        for config in plan.configs(changed):
            entries += [Entry(name, share, plan.cell(config, "gates", share)) for share in plan.shares]
    for name, method in (("gates from scratch", FROM_SCRATCH), ("small from scratch", SMALL)):
        for config in plan.configs():
            entries += [Entry(name, share, plan.cell(config, method, share)) for share in plan.shares]
    return entries


def architecture(plan: Plan) -> list[Entry]:
    """All-attention and Transformer-XL with as many parameters, both pruned by gates."""
    entries = []
    for kind in KINDS:
        model = dataclasses.replace(plan.config.model, kind=kind, **of_kind(plan.config.model, kind))
        for config in plan.configs(dataclasses.replace(plan.config, model=model)):
            entries.append(Entry(kind, None, plan.cell(config, "unpruned")))
            entries += [Entry(kind, share, plan.cell(config, "gates", share)) for share in plan.shares]
    return entries


GRIDS: dict[str, Callable[[Plan], list[Entry]]] = dict(zip(STUDIES, (tradeoff, ablation, architecture), strict=True))
