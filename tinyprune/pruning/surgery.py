"""Remove closed heads for good.

A head whose gate is 0 adds nothing to its layer's output, so everything it owns can go: its columns of Wq, Wk, Wv, Wr,
its rows of Wo, its u, w, persistent keys and values, or its network. Keys and values that several heads share go with
the last of these. The gates of open heads and the output scaling are
folded into their rows of Wo, and into the values of their networks,

    Wo_h ← gate_h · c · Wo_h          pv_h ← gate_h · c · pv_h

and the gates can go as well. The smaller model computes the same logits up to rounding. A layer that loses all of its
heads is left with x + bo.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tinyprune.model.parameters import OUTPUTS, WIDE, layer_parameters, take_heads
from tinyprune.model.transformer import Transformer


def remove_closed_heads(model: Transformer) -> Transformer:
    """Return the model without its closed heads and without gates.

    Args:
        model: with gates; it is not modified.

    Returns:
        a model with fewer heads, `config.heads`, whose original numbers are in `config.head_ids`; its arrays are new.

    Raises:
        ValueError: if the model has no gates.
    """
    if model.gate is None:
        raise ValueError("model must have gates that say which heads to remove, got one without")
    config = model.config
    before = model.host_params()
    params = {name: value for name, value in before.items() if not name.startswith("layers.")}
    head_ids = []
    for i, gates in enumerate(model.gates()):
        assert gates is not None
        kept = np.flatnonzero(gates.values)
        layer = take_heads(layer_parameters(before, i), kept, config.Dh, groups=config.groups(i))
        del layer["log_alpha"]
        factor = gates.values[kept] * gates.scale
        for name in [name for name in OUTPUTS if name in layer]:
            W = layer[name]
            rows = np.repeat(factor, config.Dh if name in WIDE else 1).reshape(-1, *(1,) * (W.ndim - 1))
            layer[name] = (W * rows).astype(W.dtype)
        params |= {f"layers.{i}.{name}": value for name, value in layer.items()}
        head_ids.append(tuple(config.head_ids[i][h] for h in kept))
    smaller = dataclasses.replace(config, heads=tuple(map(len, head_ids)), head_ids=tuple(head_ids))
    order = [name for name in model.params if not name.endswith("log_alpha")]
    return Transformer(smaller, {name: params[name].copy() for name in order}, ops=model.ops)
