"""Remove closed heads for good.

A head whose gate is 0 adds nothing to its layer's output, so everything it owns can go: its columns of Wq, Wk, Wv, Wr,
its rows of Wo, its u, w, persistent keys and values, or its network. Keys and values that several heads share go with
the last of these. The gates of open heads and the output scaling are
folded into their rows of Wo, and into the values of their networks,

    Wo_h ← gate_h · c · Wo_h          pv_h ← gate_h · c · pv_h          W2_b ← gate_b · c · W2_b

and the gates can go as well. The last line is for blocks of units, which are removed alike. The smaller model computes
the same logits up to rounding. A layer that loses all of its heads is left with x + bo.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import typed
from tinyprune.method.gates import open_config
from tinyprune.model.gates import LayerGates
from tinyprune.model.parameters import OUTPUTS, WIDE, layer_parameters, take_blocks, take_heads
from tinyprune.model.transformer import Transformer


@typed
def remove_closed_heads(model: Transformer) -> Transformer:
    """Return the model without its closed heads and blocks, and without gates.

    Args:
        model: with gates; it is not modified.

    Returns:
        a model with fewer heads, `config.heads`, whose original numbers are in `config.head_ids`; its arrays are new.
        For its blocks these are `config.blocks` and `config.block_ids`.

    Raises:
        ValueError: if the model has no gates.
    """
    if model.gate is None:
        raise ValueError("model must have gates that say which heads to remove, got one without")
    config, gates = model.config, model.gates()
    before = model.host_params()
    params = {name: value for name, value in before.items() if not name.startswith("layers.")}
    for i in range(config.L):
        own = layer_parameters(before, i)
        layer = {name: x for name, x in own.items() if not name.endswith("log_alpha")}
        kept, factor = stays(gates[i])
        layer = take_heads(layer, kept, config.Dh, groups=config.groups(i))
        for name in [name for name in OUTPUTS if name in layer]:
            layer[name] = times(layer[name], factor, config.Dh if name in WIDE else 1)
        if config.U:
            kept, factor = stays(gates[config.L + i])
            layer = take_blocks(layer, kept, config.U)
            layer["ffn.W2"] = times(layer["ffn.W2"], factor, config.U)
        params |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    order = [name for name in model.params if not name.endswith("log_alpha")]
    copies = {name: params[name].copy() for name in order}
    return dataclasses.replace(model, config=open_config(model), params=copies, gate=None)


def stays(gates: LayerGates | None) -> tuple[NDArray, NDArray]:
    """Return the numbers of the open gates, and the factor that each stands for."""
    assert gates is not None
    kept = np.flatnonzero(gates.values)
    return kept, gates.values[kept] * gates.scale


def times(W: NDArray, factors: NDArray, width: int) -> NDArray:
    """Multiply each `width` rows of a matrix in turn by the next factor."""
    rows = np.repeat(factors, width).reshape(-1, *(1,) * (W.ndim - 1))
    return (W * rows).astype(W.dtype)
