"""Michel's importance: how much the loss changes with the head's gate. (Michel, Levy & Neubig 2019, §4.1)

    I_h     = mean over examples of |∂loss(example) / ∂g_h|        at g = 1
    score_h = I_h / ‖I of its layer‖₂                              so that layers can be compared

An example is one segment of the text. The absolute value comes before the mean: examples in which the head helps do not
cancel those in which it hurts. `michel_global` is I_h itself, which compares heads of all layers as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance.masks import Scores, with_heads
from tinyprune.training.evaluation import read_segments


def michel_global(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return I_h from one reading of `tokens`, with gradients, (H,) for each layer; `rng` is not used.

    A model without gates is scored with all its heads; heads whose gates are shut score 0.
    """
    gated = with_heads(model) if model.gate is None else model
    sums = [np.zeros(H) for H in model.config.heads]
    segments = 0
    # one stream: the gradient of a batch would be that of its mean
    for _, cache in read_segments(gated, tokens, streams=1, frozen=True):
        segments += 1
        _, dgates = gated.backward_with_gates(1.0, cache)
        for total, dgate in zip(sums, dgates, strict=True):
            total += np.abs(gated.ops.to_host(dgate))
    return [total / segments for total in sums]


def michel(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores as `michel_global` does, divided by the norm of their layer."""
    scores = michel_global(model, tokens, rng)
    # a layer without any effect has scores of 0, not NaN
    return [layer / max(np.sqrt((layer**2).sum()), np.finfo(float).tiny) for layer in scores]
