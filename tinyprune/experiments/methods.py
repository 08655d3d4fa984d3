"""The ways of making a model smaller that studies compare."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tinyprune.config import OF_LAYERS
from tinyprune.errors import UsageError, nearest
from tinyprune.method.criteria import CRITERIA


@dataclass(frozen=True)
class Method:
    """What a method does in each step of `cells.CellRun`; a step that is not given does nothing.

    Attributes:
        about: one line for `tinyprune list`; a criterion is described by the first line of its docstring.
        start: "baseline", or "new" for new weights.
        by: who chooses the heads, see `ChooseConfig`.
        gates: how the gates differ from the configured ones.
        rewound: whether what stays has the weights from before the gates were trained.
        shuffled: whether the gates are dealt to random heads when they have been trained.
        repair: whether what stays is fitted to the whole model, see `method.repair`.
        heal: the stages in which what stays is trained.
        distill: the share of the divergence from the whole model in the loss meanwhile.
        longer: whether stage train has as many steps more as the missing heads save in multiply-adds.
    """

    about: str = ""
    by: str = "gates"
    start: str = "baseline"
    gates: dict[str, Any] = field(default_factory=dict)
    rewound: bool = False
    shuffled: bool = False
    repair: bool = False
    heal: tuple[str, ...] = ("gate", "finetune")
    distill: float = 0.0
    longer: bool = False


searched = partial(Method, by="least-squares", repair=True)
gated = partial(Method, by="gates", heal=("finetune",))
small = partial(Method, start="new", by="layers", heal=("train", "gate", "finetune"))
NEVER_THERE = "A model that never had the other heads, with as many"

# whole layers rarely have as many heads as the other methods' models
LEFT_OUT = ("michel-global", *OF_LAYERS)
USUAL: dict[str, Method] = {name: Method(by=name) for name in CRITERIA if name not in LEFT_OUT} | {
    "least-squares": searched(
        "The heads that the others can make up for best, found by exchanges, and the fit (OSSCAR)"
    ),
    "least-squares-distilled": searched(
        "The same; half of the loss afterwards is the divergence from the whole model", distill=0.5
    ),
    "gates": gated("Hard-Concrete gates under the L0 loss, trained with the weights (Shim et al. 2021)"),
    "voita": gated(
        "Soft Hard-Concrete gates without output scaling: a variant of those of Voita et al. 2019",
        gates={"hard": False, "output_scaling": False},
    ),
    "deterministic": gated("Hard-Concrete gates without noise", gates={"distribution": "deterministic"}),
    # Two that tell the choice of heads from the training of the weights meanwhile.
    "gates-heads": Method(
        "The heads that `gates` keeps, in the baseline, and all steps to fine-tune them: the choice alone",
        rewound=True,
    ),
    "gates-random": gated(
        "A gate stage, and then random heads in place of those it has chosen: the training alone",
        shuffled=True,
    ),
}


def arm_name(choice: str, repair: bool, distill: bool) -> str:
    """Return the name of an arm; least squares repairs unless it is called alone."""
    repaired = "-repaired" * repair
    if choice == "least-squares":
        repaired = "" if repair else "-alone"
    return f"{choice}{repaired}{'-distilled' * distill}"


def arm(choice: str, repair: bool, distill: bool) -> Method:
    """Return a way of choosing heads with or without a repair after it, and distillation while what stays is trained.

    Gates are trained by their own loss; only the stage after them distills.
    """
    words = ["a repair"] * repair + ["distillation"] * distill
    about = f"The heads that `{choice}` chooses, with {' and '.join(words) or 'neither repair nor distillation'}"
    return replace(USUAL[choice], about=about, repair=repair, distill=0.5 * distill)


# The factorial of the recipe: each choice with and without repair and distillation. A study has them by name only.
CHOICES = ("random", "michel", "gates", "least-squares")
ARMS = [(choice, *ways) for choice in CHOICES for ways in itertools.product((False, True), repeat=2)]
FACTORIAL = {arm_name(*given): USUAL.get(arm_name(*given)) or arm(*given) for given in ARMS}
METHODS = USUAL | FACTORIAL
# The model that the methods start from, and what they are held against: the whole model with as many
# steps; a model that never had the other heads, with as many steps, and with as many multiply-adds.
BASELINE, UNPRUNED = "baseline", "unpruned"
SMALL, SMALL_LONGER = "small-from-scratch", "small-longer"
CONTROLS: dict[str, Method] = {
    BASELINE: Method(by="", start="new", heal=("train",)),
    UNPRUNED: Method(by=""),
    SMALL: small(f"{NEVER_THERE} steps"),
    SMALL_LONGER: small(f"{NEVER_THERE} multiply-adds", longer=True),
}
COMPARED = (*USUAL, SMALL, SMALL_LONGER)  # what `--methods` has if it is not given
KNOWN = (*METHODS, SMALL, SMALL_LONGER)  # what it can name


def check_choices(shares: Sequence[float], total: int, methods: Sequence[str], known: Iterable[str]) -> None:
    """Raise UsageError unless shares of `total` heads are different numbers, and methods are known."""
    known = tuple(known)
    if not methods:
        raise UsageError(f"methods must be at least one of {', '.join(known)}; got none")
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise UsageError(f"shares must be numbers from 0 to 1, got {list(shares)}")
    for method in methods:
        if method not in known:
            hint = nearest(method, known)
            raise UsageError(f"methods must be among {', '.join(known)}; got {method!r}{hint}")
    if len(set(methods)) < len(methods):
        raise UsageError(f"methods must be different, got {', '.join(methods)}")
    heads = [round(share * total) for share in shares]
    if len(set(heads)) < len(heads):
        given = f"{list(shares)} are {heads}"
        raise UsageError(f"shares must stand for different numbers of heads; {given}")
