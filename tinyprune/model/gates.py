"""The gates of all layers in one forward pass, and the backward pass to every `log_alpha`.

The `log_alpha` of all parts (`Parts`: the heads of each layer, then the blocks of units of each, where the model has
them) are joined, go through one operation (`ops.hard_concrete_forward`), and are split again. In training
the noise is drawn from `rng`; in evaluation there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune import ops as textbook
from tinyprune.config import GateConfig, ModelConfig
from tinyprune.model.parameters import Parameters, read_by, take_blocks, take_heads
from tinyprune.model.parts import Parts, summed
from tinyprune.ops.engine import Engine

Groups = tuple[int, ...] | None  # for each head the number of its key-value head, see `ModelConfig.groups`


@dataclass(frozen=True)
class LayerGates:
    """The gates of a layer's heads, or of its blocks of units, in one forward pass."""

    values: NDArray  # (H,)
    scale: float  # output scaling c
    active: NDArray  # numbers of the heads that are computed


def gates_forward(
    params: Parameters,
    config: ModelConfig,
    gate: GateConfig | None,
    ops: Engine,
    rng: np.random.Generator | None,
    all_heads: bool,
) -> tuple[list[LayerGates | None], Any]:
    """Sample or evaluate the gates of every layer.

    Args:
        params: the model's, with those of `Parts.gates`.
        config: of the model.
        gate: the kind of gates, or None for a model without.
        ops: the engine, in whose memory the parameters are.
        rng: noise; None for evaluation.
        all_heads: compute all heads. Otherwise a head whose gate is shut and (in training) cannot move is not active.

    Returns:
        gates: of the heads of each layer, then of the blocks of each; a list of None without gates.
        cache: what `gates_backward` needs.
    """
    parts = Parts(config)
    if gate is None:
        return [None] * len(parts.counts), None
    log_alpha = parts.log_alpha(params, ops)
    values, cache, moving = sample(log_alpha, gate, rng, parts.tied(gate.groups))
    opened = values.real != 0
    computed = opened | moving | all_heads
    layers: list[LayerGates | None] = []
    for own, is_open, is_computed in zip(*map(parts.split, (values, opened, computed)), strict=True):
        scale = output_scaling(own.size, int(is_open.sum())) if gate.output_scaling else 1.0
        layers.append(LayerGates(own, scale, np.flatnonzero(is_computed)))
    return layers, cache


def sample(log_alpha: NDArray, gate: GateConfig, rng: np.random.Generator | None, first: NDArray) -> tuple:
    """Return the values of all gates (n,), the cache, and which of them may move in this step even if they are shut."""
    n, dtype = log_alpha.size, log_alpha.real.dtype
    u = None if rng is None else textbook.draw_noise(n, rng, dtype)[first]
    if u is not None and gate.distribution == "deterministic":
        u = np.full(n, 0.5, dtype)  # log u − log(1 − u) = 0
    options: dict[str, Any] = {"beta": gate.beta, "gamma": gate.gamma, "zeta": gate.zeta, "hard": gate.hard}
    values, cache = textbook.hard_concrete_forward(log_alpha, u, **options)
    if rng is None:
        return values, cache, np.zeros(n, bool)
    # A gate that is shut in this pass may still learn to open, unless it is clipped.
    return values, cache, textbook.hard_concrete_backward(np.ones(n, dtype), cache).real != 0


def gates_backward(
    dgates: Sequence[NDArray], config: ModelConfig, gate: GateConfig, ops: Engine, cache: tuple
) -> Parameters:
    """Return the gradient of every `log_alpha`, by name, from those of the gates' values in main memory."""
    # values = hard_concrete(log_alpha)
    dlog_alpha = textbook.hard_concrete_backward(np.concatenate(dgates), cache)
    parts = Parts(config)
    return parts.named(summed(dlog_alpha, parts.tied(gate.groups)), ops)


def take_active(
    p: Parameters, gates: LayerGates | None, groups: Groups, Dh: int, ops: Engine
) -> tuple[Parameters, Groups]:
    """Return a layer's parameters `p`, with its gates as "gate", and its `groups`, without the inactive heads."""
    if gates is None:
        return p, groups
    if gates.active.size < gates.values.size:
        p = take_heads(p, gates.active, Dh, ops.take_slices, groups)
        if groups is not None:
            present = list(read_by(gates.active, groups))
            groups = tuple(present.index(groups[h]) for h in gates.active)
    return p | {"gate": gates.values[gates.active]}, groups


def take_active_blocks(p: Parameters, gates: LayerGates | None, U: int, ops: Engine) -> Parameters:
    """Return a layer's parameters, with the gates of its blocks as "ffn.gate", without the inactive blocks."""
    if gates is None:
        return p
    if gates.active.size < gates.values.size:
        p = take_blocks(p, gates.active, U, ops.take_slices)
    return p | {"ffn.gate": gates.values[gates.active]}


def put_active(
    grads: Parameters, gates: LayerGates | None, name: str, put: Callable[..., Parameters], ops: Engine
) -> Parameters:
    """Reverse `take_active`, or `take_active_blocks`, for gradients: what was left out of the loss gets zeros.

    `put` is `put_heads` or `put_blocks` of the layer. The gradient of the gates, called `name`, comes from the engine's
    memory and is returned in main memory.
    """
    if gates is None:
        return grads
    grads, count = dict(grads), gates.values.size
    dgate = ops.to_host(grads.pop(name))
    if gates.active.size < count:
        grads = put(grads, gates.active, count)
        dgate = textbook.put_slices(dgate, gates.active, 0, count)
    return grads | {name: dgate}


def output_scaling(H: int, opened: int) -> float:
    """Return c = H / open heads, in 1 … H, which keeps a layer's output size when heads close. (Shim et al. 2021)"""
    return H / max(opened, 1) if H else 1.0
