"""Choosing by gates: every part gets a gate, and the loss rewards closed gates.

    lam       loss = cross-entropy + lam · L0                                               (Shim et al. 2021)
    target    instead of lam: a controller that holds the expected number of open heads at a target
    share     a controller as for the target, but of what the parts cost, say in parameters, see `Parts.prices`

lam grows linearly from 0 (and t falls from all heads to the target), so that pruning begins from the trained model. L0
is a sum over all heads of all layers. Where blocks of feed-forward units have gates, too (`choose.units`), all of this
is meant of heads and blocks alike.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import OF_LAYERS, ChooseConfig, GateConfig, ModelConfig
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.method.recipe import Recipe
from tinyprune.model.parameters import Parameters
from tinyprune.model.parts import Mask, Parts, summed, within
from tinyprune.model.transformer import Memory, Transformer, accumulate
from tinyprune.ops import l0_backward, l0_forward, sigmoid
from tinyprune.training.schedules import linear_warmup
from tinyprune.training.step import Gradients, Noise

OPEN, CLOSED = 20.0, -20.0  # log_alpha of gates that are exactly 1 and 0 in evaluation, and do not move


def with_gates(whole: Transformer, recipe: Recipe, per_epoch: int) -> tuple[Transformer, GateObjective]:
    """Return a copy of the model with a gate on every part, and the objective that closes gates.

    Args:
        whole: without gates. Where its weights are frozen the copy shares them.
        recipe: what stays, the kind of gates, and their training.
        per_epoch: steps in which the text is read once.

    Raises:
        UsageError: if more parts should stay open than there are, or less than what has no gates; see `in_parts`.
    """
    how, gate = recipe.choose, recipe.gate
    parted = in_parts(whole, how)
    host, to_device = whole.host_params(), whole.ops.to_device
    params = whole.params
    if not gate.frozen:
        params = {name: to_device(x.copy()) for name, x in host.items()}
    params = add_gates(params, parted.config, gate, heads=how.heads)
    gated = dataclasses.replace(parted, params=params, gate=gate)
    prices, target = budget(gated.config, how)
    warmup = warmup_steps(how, gate, recipe.gate_train.steps, per_epoch)
    return gated, GateObjective(gate, warmup, Parts(gated.config).total, prices, target)


def in_parts(model: Transformer, how: ChooseConfig) -> Transformer:
    """Return the model whose blocks of `choose.units` units are parts, too; the same without them.

    Raises UsageError if the model has no such blocks, or only the number of heads is to be held.
    """
    return dataclasses.replace(model, config=with_blocks(model.config, how))


def with_blocks(config: ModelConfig, how: ChooseConfig) -> ModelConfig:
    """Return the configuration of `in_parts`."""
    F, U = config.F, how.units
    if not U:
        return config
    needed = None
    if not F:
        needed = "0 for a model without feed-forward blocks"
    elif F % U:
        needed = f"a divisor of {F}, the units of a feed-forward block"
    elif config.U not in (0, U):
        needed = f"{config.U}, since blocks of so many units were removed before"
    elif how.target_heads is not None and how.by not in OF_LAYERS:
        needed = "0 with choose.target_heads, which counts heads alone; give a target_share"
    if needed is not None:
        raise UsageError(f"choose.units (--units) must be {needed}; got {U}")
    return dataclasses.replace(config, U=U)


def add_gates(params: Parameters, config: ModelConfig, gate: GateConfig, heads: bool = True) -> Parameters:
    """Return the parameters with gates, every log_alpha at its initial value; that of heads that may not close at 20.

    Args:
        params: not modified, but its arrays are shared.
        config: of the model.
        gate: of which kind.
        heads: whether heads may close.
    """
    parts, dtype, gates = Parts(config), params["ln.scale"].dtype, {}
    for name, count in zip(parts.gates, parts.counts, strict=True):
        may_close = heads or "ffn" in name
        gates[name] = np.full(count, gate.log_alpha_init if may_close else OPEN, dtype)
    return params | gates


def warmup_steps(how: ChooseConfig, gate: GateConfig, steps: int, per_epoch: int) -> int:
    """Return the steps over which lam, or the target, is reached.

    A gate needs a few hundred steps to close, and a target that falls faster is overshot: half of the stage. lam rises
    over one epoch, as in the paper, unless that is set.
    """
    if how.has_target:
        return steps // 2
    return per_epoch if gate.lam_warmup is None else gate.lam_warmup


def budget(config: ModelConfig, how: ChooseConfig) -> tuple[NDArray | None, float | None]:
    """Return what each part costs, in units of their mean, and how much may stay: a number of mean parts, or None.

    The prices are None if all parts cost the same.

    Raises:
        UsageError: if nothing that has gates could stay, or more should than there is.
    """
    parts = Parts(config)
    prices, whole = parts.prices(how.price)
    unit = prices.mean() if prices.any() else 1.0
    weights = prices / unit
    if (prices == unit).all():
        weights = None
    if how.target_share is None:
        if how.target_heads is not None and how.target_heads > parts.total:
            raise UsageError(
                f"choose.target_heads must be at most the model's {parts.total} heads, got {how.target_heads}"
            )
        return weights, how.target_heads
    fixed = whole - prices.sum()
    if how.target_share * whole < fixed:
        raise UsageError(
            f"choose.target_share must be at least {fixed / whole:.3f}, for so much of the {how.price} has no gates; "
            f"got {how.target_share}"
        )
    return weights, (how.target_share * whole - fixed) / unit


def open_parts(model: Transformer) -> Mask:
    """Return which parts are open in evaluation; all of them without gates."""
    if model.gate is None:
        return Parts(model.config).full(True)
    return [gates.values != 0 for gates in model.gates() if gates is not None]


def open_config(model: Transformer) -> ModelConfig:
    """Return the configuration with only what is open in evaluation, which is what the model computes."""
    return Parts(model.config).remaining(open_parts(model))


def controller_step(
    n: float, target: float, heads: int, lam1: float, lam2: float, lr: float
) -> tuple[float, float, float]:
    """Return the pressure at `n` open heads, and both multipliers after their step of ascent."""
    distance = (n - target) / heads
    return lam1 + 2 * lam2 * distance, lam1 + lr * distance, lam2 + lr * distance**2


class Controller:
    """Holds the number of open heads h at a target t by a Lagrangian, lam1 · (h − t) + lam2 · (h − t)² / heads.

    The gates descend it and the two multipliers ascend it. Its slope over h, lam1 + 2 · lam2 · (h − t) / heads, is the
    pressure that closes gates: it replaces lam as the weight of L0. It grows while too many heads are open and falls
    while too few are. (Platt & Barr 1988; Wang et al. 2020, §4.2)

    Gates respond some hundred steps after the pressure, so multipliers that start at 0 and grow fast overshoot far:
    lam2 starts at a value that steers at once, and the steps are small.

    Args:
        target: number of heads to hold open, or of mean parts, see `budget`.
        heads_total: how many have gates; distances are shares of these, so that one `lr` serves models of every size.
        lr: step size of the multipliers.
    """

    LAM2_START = 0.5

    def __init__(self, target: float, heads_total: int, lr: float) -> None:
        self.target = target
        self.heads_total = heads_total
        self.lr = lr
        self.lam1 = 0.0
        self.lam2 = self.LAM2_START

    def pressure(self, h: float, t: float) -> float:
        """Return the weight of L0 for `h` open heads and the current target `t`, and update the multipliers."""
        pressure, self.lam1, self.lam2 = controller_step(h, t, self.heads_total, self.lam1, self.lam2, self.lr)
        return pressure


class GateObjective:
    """The objective that the gate stage minimises, see the head of this file.

    Args:
        gate: the configuration.
        warmup: steps over which lam, or the target, is reached.
        heads_total: number of gates.
        prices: what each of them counts, see `budget`; None for 1.
        target: how much may stay; None: no controller, but lam.
    """

    def __init__(
        self,
        gate: GateConfig,
        warmup: int,
        heads_total: int,
        prices: NDArray | None = None,
        target: float | None = None,
    ) -> None:
        self.gate = gate
        self.warmup = warmup
        self.heads_total = heads_total
        self.prices = prices
        self.controller = None
        if target is not None:
            self.controller = Controller(target, heads_total, gate.controller_lr)

    def __call__(
        self, model: Transformer, ids: NDArray, targets: NDArray, memory: Memory | None, rng: Noise, step: int
    ) -> Gradients:
        """See `tinyprune.training.step.Objective`."""
        gate, ops, parts = self.gate, model.ops, Parts(model.config)
        share = linear_warmup(step, self.warmup)
        log_alpha = parts.log_alpha(model.params, ops)
        lam = gate.lam * share
        if self.controller is not None:
            lam = self.pressure(self.controller, log_alpha, share)
        loss, memory, cache = model.loss(ids, targets, memory, rng, frozen=gate.frozen)
        grads = model.backward(1.0, cache, once=True)
        l0, l0_cache = l0_forward(log_alpha, self.prices, beta=gate.beta, gamma=gate.gamma, zeta=gate.zeta)
        # float: with NumPy's own float64 a reader's l0_backward would make the gradient float64
        dlog_alpha = summed(l0_backward(float(lam), l0_cache), parts.tied(gate.groups))
        accumulate(grads, parts.named(dlog_alpha, ops), ops)
        return {"loss": loss, "l0": l0, "lam": lam}, memory, grads

    def pressure(self, controller: Controller, log_alpha: NDArray, share: float) -> float:
        """Return the controller's weight of L0; the target has moved by `share` from the initial h to its final value.

        It measures h = Σ sigmoid(log_alpha − opening), which counts ½ for a head on the border of being open in
        evaluation. L0 = Σ P(g > 0) would also count gates that are mostly shut, and leave too few open.
        """
        opening = opening_log_alpha(self.gate)
        opened = sigmoid(log_alpha - opening)
        if self.prices is not None:
            opened = self.prices * opened
        h = float(opened.sum())
        start = self.heads_total / (1 + math.exp(opening - self.gate.log_alpha_init))  # h before the first step
        return controller.pressure(h, start + share * (controller.target - start))

    def describe(self, model: Transformer) -> dict[str, Any]:
        """Return for the log the heads, and blocks, that are open in evaluation, and every log_alpha, by layer."""
        L = model.config.L
        opened = [int(mask.sum()) for mask in open_parts(model)]
        blocks = {"blocks_open": sum(opened[L:])} if model.config.U else {}
        gates = [model.params[name] for name in Parts(model.config).gates]
        log_alpha = [model.ops.to_host(x).tolist() for x in gates]
        return {"heads_open": sum(opened[:L])} | blocks | {"log_alpha": log_alpha}

    def state(self) -> dict[str, NDArray]:
        """Return the controller's two multipliers, (2,)."""
        if self.controller is None:
            return {}
        return {"lam": np.array([self.controller.lam1, self.controller.lam2])}

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Continue from `state`. Raises CheckpointError if it is not this objective's."""
        if (self.controller is None) == ("lam" in state):
            raise CheckpointError(
                "the checkpoint was made with another setting of choose.target_heads; resume with that"
            )
        if self.controller is not None:
            self.controller.lam1, self.controller.lam2 = state["lam"].tolist()


def hit_target(model: Transformer, how: ChooseConfig) -> int:
    """End the gate stage with exactly the parts open that the target allows, see `settle`; without one return 0.

    The keys and values that heads share go with the last of these, so that a share of them is no exact price: what may
    stay is lowered until the share is kept by what really stays.
    """
    prices, target = budget(model.config, how)
    if target is None:
        return 0
    parts = Parts(model.config)
    start = {name: model.params[name] for name in parts.gates}
    moved = settle(model, target, prices)
    if how.target_share is not None:
        own, whole = parts.prices(how.price)
        while True:
            _, stays = Parts(open_config(model)).prices(how.price)
            over = stays - how.target_share * whole
            if over <= 0.5:
                break
            spent = own[np.concatenate(open_parts(model))].sum()
            target = min(target, spent / own.mean()) - over / own.mean()
            model.params |= start  # which says in what order gates close
            moved = settle(model, target, prices)
    return moved


def settle(model: Transformer, target: float, prices: NDArray | None = None) -> int:
    """Move log_alpha across the opening so that exactly `target` heads are open in evaluation.

    Returns how many heads it closed, or opened if negative.

    The controller holds the expected number at the target; single gates may still lie on the wrong side of it. The
    heads with the largest log_alpha stay; ties go to the earlier layer and the lower head. Only gates on the wrong side
    are moved: soft gates that stay keep their values. A gate that must open is opened half-way. With `prices`, one for
    each part, those stay that fit into `target` together.
    """
    gate, ops, parts = model.gate, model.ops, Parts(model.config)
    if gate is None:
        return 0
    log_alpha = parts.log_alpha(model.params, ops)
    prices = np.ones(len(log_alpha)) if prices is None else prices
    first = parts.tied(gate.groups)
    is_first = first == np.arange(first.size)
    prices = np.where(is_first, summed(prices, first), 0)  # the first part of a gate has the price of all
    stay = within(np.argsort(-log_alpha, kind="stable"), prices, target)[first]
    opened = np.concatenate(open_parts(model))
    if (opened == stay).all():
        return 0
    opening, margin = opening_log_alpha(gate), 1e-3
    least = opening + margin
    if not gate.hard:  # a soft gate that must open does so half-way
        least = opening_log_alpha(dataclasses.replace(gate, hard=True))
    opens = np.where(log_alpha > opening, log_alpha, least)
    closes = np.minimum(log_alpha, opening - margin)
    model.params |= parts.named(np.where(stay, opens, closes).astype(log_alpha.dtype), ops)
    return int(opened.sum()) - int(stay.sum())


def opening_log_alpha(gate: GateConfig) -> float:
    """Return the log_alpha above which a gate is open in evaluation: the stretched sigmoid is ½ there if hard, else 0.

    With the paper's gamma and zeta a hard gate opens at log_alpha = 0.
    """
    threshold = 0.5 if gate.hard else 0.0
    return math.log((threshold - gate.gamma) / (gate.zeta - threshold))
