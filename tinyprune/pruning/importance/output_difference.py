"""Output difference: the distance between the layer's output with the head and without it.

    score_h = mean over positions of ‖Δ_h‖₂          Δ_h = y(g_h = 1) − y(g_h = 0), see `ops.head_difference`

For a head with a network, the network's output is included.
The score sees what a head adds to the residual stream, not whether later layers care.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer, gated_outputs
from tinyprune.ops import head_difference
from tinyprune.pruning.importance.masks import Scores
from tinyprune.training.evaluation import read_segments


def output_difference(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores from one reading of `tokens`, (H,) for each layer; `rng` is not used."""
    segments = 0
    sums = [np.zeros(H) for H in model.config.heads]
    for _, cache in read_segments(model, tokens, all_heads=True):
        segments += 1
        for i, total in enumerate(sums):
            gates = cache.gates[i]
            scale = 1.0 if gates is None else gates.scale
            host = model.ops.to_host
            delta = np.sum([head_difference(host(o), host(W), scale) for o, W, _ in gated_outputs(model, cache, i)], 0)
            total += np.sqrt((delta**2).sum(-1)).mean((1, 2))  # delta (H, B, T, D)
    return [total / segments for total in sums]
