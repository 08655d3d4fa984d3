"""The ways of making a model smaller that studies compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tinyprune.pruning.importance import CRITERIA


@dataclass(frozen=True)
class Method:
    """What a method does in each step of `cells.CellRun`; a step that is not given does nothing.

    Attributes:
        about: one line for `tinyprune list`; a criterion is described by the first line of its docstring.
        start: "baseline", or "new" for new weights.
        choose: how heads are chosen. "criterion": those with the highest scores; "rounds": the same, scored again after
            every tenth of all heads is removed; "search": least squares, in all layers together; "gates"; "layers": the
            same share of each layer, without looking.
        criterion: which scores, one of `CRITERIA`.
        gates: how the gates differ from the configured ones.
        rewound: whether what stays has the weights from before the gates were trained.
        repair: how what stays is fitted to the whole model, see `pruning.repair`.
        heal: the stages in which what stays is trained.
        distill: the share of the divergence from the whole model in the loss meanwhile.
    """

    about: str = ""
    criterion: str = ""
    choose: str = ""
    start: str = "baseline"
    gates: dict[str, Any] = field(default_factory=dict)
    rewound: bool = False
    repair: str = ""
    heal: tuple[str, ...] = ("gate", "finetune")
    distill: float = 0.0


scored = partial(Method, choose="criterion")
searched = partial(Method, choose="search", repair="least-squares")
gated = partial(Method, choose="gates", heal=("finetune",))
TASK = {"objective": "task"}
DISTILLED = "half of the loss afterwards is the divergence from the whole model"

METHODS: dict[str, Method] = {name: scored(criterion=name) for name in CRITERIA} | {
    "michel-iterative": Method(
        "Michel's importance, evaluated again after every tenth of all heads is removed", "michel", "rounds"
    ),
    "michel-repaired": scored(
        "Michel's heads; the others' Wo and bo are fitted to the layer's output (OSSCAR's formula)",
        "michel",
        repair="least-squares",
    ),
    "michel-distilled": scored(f"Michel's heads; {DISTILLED}", "michel", distill=0.5),
    "flap": scored(
        "Fluctuation's heads; their mean output goes into bo (FLAP, An et al. 2023)", "fluctuation", repair="mean"
    ),
    "least-squares": searched(
        "The heads that the others can make up for best, found by exchanges, and the fit (OSSCAR)"
    ),
    "least-squares-distilled": searched(f"The same; {DISTILLED}", distill=0.5),
    "gates": gated("Hard-Concrete gates under the L0 loss, trained with the weights (Shim et al. 2021)", gates=TASK),
    "gates-layerwise": gated(
        "The same gates, which also minimise the error that they cause in each layer's output",
        gates={"objective": "layerwise"},
    ),
    "voita": gated(
        "Soft Hard-Concrete gates without output scaling (Voita et al. 2019)",
        gates={"hard": False, "output_scaling": False},
    ),
    "gumbel-top-k": gated(
        "Soft top-k: gates that always leave exactly k heads open (Li, Cotterell & Sachan 2021)",
        gates={"distribution": "top-k", "output_scaling": False},
    ),
    "deterministic": gated("Hard-Concrete gates without noise", gates={"distribution": "deterministic"}),
    # Two that tell the choice of heads from the training of the weights meanwhile.
    "gates-rewound": gated(
        "The heads that `gates` keeps, with the weights from before the gate stage", gates=TASK, rewound=True
    ),
    "gates-heads": Method(
        "The same, and all steps to fine-tune them: the choice of heads alone", choose="gates", gates=TASK, rewound=True
    ),
}
BASELINE, UNPRUNED, FROM_SCRATCH, SMALL = "baseline", "unpruned", "gates-from-scratch", "small-from-scratch"
# The model that the methods start from, and what they are held against.
CONTROLS: dict[str, Method] = {
    BASELINE: Method(start="new", heal=("train",)),
    UNPRUNED: Method(),
    FROM_SCRATCH: gated(start="new", gates=TASK),
    SMALL: Method(start="new", choose="layers", heal=("train", "finetune")),
}
