"""The gates of all layers in one forward pass, and the backward pass to every `log_alpha`.

The `log_alpha` of all layers are joined, (all heads,), go through one operation, and are split again:

    hard-concrete   each gate independently (`ops.hard_concrete_forward`)
    top-k           k of all heads together (`ops.top_k_forward`)

In training the noise is drawn from `rng`; in evaluation there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model.parameters import Parameters, put_heads, read_by, take_heads

Groups = tuple[int, ...] | None  # for each head the number of its key-value head, see `ModelConfig.groups`


@dataclass(frozen=True)
class LayerGates:
    """The gates that a layer has in one forward pass."""

    values: NDArray  # (H,), in main memory
    gate: NDArray  # the same, in the backend's memory
    scale: float  # output scaling c
    active: NDArray  # numbers of the heads that are computed


def gate_names(layers: int) -> list[str]:
    """Return the names of the layers' log_alpha among the parameters."""
    return [f"layers.{i}.log_alpha" for i in range(layers)]


def joined_log_alpha(params: Parameters, layers: int, ops: Backend) -> NDArray:
    """Join the log_alpha of all layers, (all heads,)."""
    return ops.join([params[name] for name in gate_names(layers)])


def by_layer(values: NDArray, heads: Sequence[int]) -> list[NDArray]:
    """Split one number for each head, (all heads,), into a view (H,) for each layer."""
    ends = itertools.accumulate(heads)
    return [values[end - H : end] for H, end in zip(heads, ends, strict=True)]


def gates_forward(
    params: Parameters,
    heads: Sequence[int],
    gate: GateConfig,
    ops: Backend,
    rng: np.random.Generator | None,
    all_heads: bool,
) -> tuple[list[LayerGates | None], tuple]:
    """Sample or evaluate the gates of every layer.

    Args:
        params: the model's, with a `layers.i.log_alpha` (H,) for each layer.
        heads: number of heads of each layer.
        gate: the kind of gates.
        ops: the backend's operations.
        rng: noise; None for evaluation.
        all_heads: compute all heads. Otherwise a head whose gate is shut and (in training) cannot move is not active.

    Returns:
        gates: of each layer.
        cache: what `gates_backward` needs.
    """
    log_alpha = joined_log_alpha(params, len(heads), ops)
    n, dtype = log_alpha.size, log_alpha.real.dtype
    if gate.distribution == "top-k":
        assert gate.target_heads is not None  # as `GateConfig` has checked
        noise = None if rng is None else ops.draw_gumbel(n, rng, dtype)
        gate_values, cache = ops.top_k_forward(log_alpha, noise, k=gate.target_heads, tau=gate.tau, hard=gate.hard)
        moving = np.full(n, rng is not None)
    else:
        u = None if rng is None else ops.draw_noise(n, rng, dtype)
        if u is not None and gate.distribution == "deterministic":
            u = ops.to_device(np.full(n, 0.5, dtype))  # log u − log(1 − u) = 0
        gate_values, cache = ops.hard_concrete_forward(
            log_alpha, u, beta=gate.beta, gamma=gate.gamma, zeta=gate.zeta, hard=gate.hard
        )
        moving = np.zeros(n, bool)
        if rng is not None:
            # A gate that is shut in this pass may still learn to open, unless it is clipped.
            slope = ops.hard_concrete_backward(ops.to_device(np.ones(n, dtype)), cache)
            moving = ops.to_host(slope).real != 0
    # Python must know which heads to compute, so this waits for a GPU.
    values = ops.to_host(gate_values)
    opened = values.real != 0
    computed = opened | moving | all_heads
    layers: list[LayerGates | None] = []
    for own, of_backend, is_open, is_computed in zip(
        *(by_layer(every, heads) for every in (values, gate_values, opened, computed)), strict=True
    ):
        scale = output_scaling(own.size, int(is_open.sum())) if gate.output_scaling else 1.0
        layers.append(LayerGates(own, of_backend, scale, np.flatnonzero(is_computed)))
    return layers, cache


def gates_backward(dvalues: Sequence[NDArray], gate: GateConfig, ops: Backend, cache: tuple) -> list[NDArray]:
    """Return the gradient of every layer's `log_alpha` (H,), from those of its gate values."""
    dout = ops.join(dvalues)
    # values = hard_concrete(log_alpha) or top_k(log_alpha)
    backward = ops.top_k_backward if gate.distribution == "top-k" else ops.hard_concrete_backward
    return by_layer(backward(dout, cache), [layer.size for layer in dvalues])


def take_active(
    layer: Parameters, gates: LayerGates | None, groups: Groups, Dh: int, ops: Backend
) -> tuple[Parameters, NDArray | None, float, Groups]:
    """Return a layer's parameters, gate (heads,), output scaling and groups, without the inactive heads.

    Args:
        layer: its parameters, by short name.
        gates: None for a model without gates, whose gate is None and whose scaling is 1.
        groups: `ModelConfig.groups` of the layer.
        Dh: head width.
        ops: backend.
    """
    if gates is None:
        return layer, None, 1.0, groups
    if gates.active.size == gates.values.size:
        return layer, gates.gate, gates.scale, groups
    taken = take_heads(layer, gates.active, Dh, ops.take_slices, groups)
    if groups is not None:
        present = list(read_by(gates.active, groups))
        groups = tuple(present.index(groups[h]) for h in gates.active)
    return taken, ops.take_slices(gates.gate, gates.active, 0), gates.scale, groups


def put_active(
    dlayer: Parameters, dgate: NDArray, gates: LayerGates, groups: Groups, Dh: int, ops: Backend
) -> tuple[Parameters, NDArray]:
    """Reverse `take_active` for gradients: a head that was left out does not affect the loss and gets zeros."""
    H = gates.values.size
    if gates.active.size == H:
        return dlayer, dgate
    dlayer = put_heads(dlayer, gates.active, H, Dh, ops.put_slices, groups)
    return dlayer, ops.put_slices(dgate, gates.active, 0, H)


def output_scaling(H: int, opened: int) -> float:
    """Return c = H / open heads, in 1 … H, which keeps a layer's output size when heads close. (Shim et al. 2021)"""
    return H / max(opened, 1) if H else 1.0
