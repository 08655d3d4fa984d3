"""The gates of all layers in one forward pass, and the backward pass to every `log_alpha`.

The `log_alpha` of all parts (`ModelConfig.parts`: the heads of each layer, then the blocks of units of each, where the
model has them) are joined, go through one operation (`ops.hard_concrete_forward`), and are split again. In training
the noise is drawn from `rng`; in evaluation there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune import ops as textbook
from tinyprune.config import GateConfig, ModelConfig
from tinyprune.model.parameters import Parameters, read_by, take_blocks, take_heads
from tinyprune.ops.engine import Engine

Groups = tuple[int, ...] | None  # for each head the number of its key-value head, see `ModelConfig.groups`


@dataclass(frozen=True)
class LayerGates:
    """The gates of a layer's heads, or of its blocks of units, in one forward pass."""

    values: NDArray  # (H,)
    scale: float  # output scaling c
    active: NDArray  # numbers of the heads that are computed


def gate_names(layers: int, blocks: object = False) -> list[str]:
    """Return the names of all log_alpha among the parameters, in the order of `ModelConfig.parts`.

    `blocks`: whether blocks of units have gates, too.
    """
    names = ("log_alpha", "ffn.log_alpha") if blocks else ("log_alpha",)
    return [f"layers.{i}.{name}" for name in names for i in range(layers)]


def joined_log_alpha(params: Parameters, layers: int, ops: Engine) -> NDArray:
    """Return the log_alpha of all parts, (all,), in main memory."""
    names = gate_names(layers, "layers.0.ffn.log_alpha" in params)
    return np.concatenate([ops.to_host(params[name]) for name in names])


def split_log_alpha(values: NDArray, config: ModelConfig, ops: Engine) -> Parameters:
    """Return one number for each part, (all,), in the engine's memory, by the names of `gate_names`."""
    names = gate_names(config.L, config.U)
    return {name: ops.to_device(own.copy()) for name, own in zip(names, by_layer(values, config.parts), strict=True)}


def by_layer(values: NDArray, parts: Sequence[int]) -> list[NDArray]:
    """Split one number for each part, (all,), into a view for each entry of `ModelConfig.parts`."""
    ends = itertools.accumulate(parts)
    return [values[end - count : end] for count, end in zip(parts, ends, strict=True)]


def first_parts(config: ModelConfig, gate: GateConfig) -> NDArray:
    """Return for each part the first one of its gate: for `gate.groups` of the heads that share keys and values."""
    own = [(gate.groups and i < config.L and config.groups(i)) or range(n) for i, n in enumerate(config.parts)]
    first = np.concatenate([np.diff(groups, prepend=-1) for groups in own]) > 0
    return np.flatnonzero(first)[np.cumsum(first) - 1]


def together(values: NDArray, first: NDArray) -> NDArray:
    """Return for each part the sum over all parts of its gate."""
    return np.bincount(first, values).astype(values.dtype)[first]


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
        params: the model's, with those of `gate_names`.
        config: of the model.
        gate: the kind of gates, or None for a model without.
        ops: the engine, in whose memory the parameters are.
        rng: noise; None for evaluation.
        all_heads: compute all heads. Otherwise a head whose gate is shut and (in training) cannot move is not active.

    Returns:
        gates: of the heads of each layer, then of the blocks of each; a list of None without gates.
        cache: what `gates_backward` needs.
    """
    parts = config.parts
    if gate is None:
        return [None] * len(parts), None
    log_alpha = joined_log_alpha(params, config.L, ops)
    values, cache, moving = sample(log_alpha, gate, rng, first_parts(config, gate))
    opened = values.real != 0
    computed = opened | moving | all_heads
    layers: list[LayerGates | None] = []
    for own, is_open, is_computed in zip(*(by_layer(x, parts) for x in (values, opened, computed)), strict=True):
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
    return split_log_alpha(together(dlog_alpha, first_parts(config, gate)), config, ops)


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
