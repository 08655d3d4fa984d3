"""Confidence: a head that often puts most of its weight on one position is sure of its choice.
(Voita et al. 2019, §3)

    score_h = mean over queries of max_j a_ij          j over context keys and persistent vectors alike
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pruning.importance.masks import Scores
from tinyprune.training.evaluation import read_segments


def confidence(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores from one reading of `tokens`, (H,) for each layer; `rng` is not used.

    Compiled kernels never store the attention weights, so the textbook backend reads the text.
    """
    textbook = dataclasses.replace(model, params=model.host_params(), ops=Engine())
    segments = 0
    sums = [np.zeros(H) for H in model.config.heads]
    for _, cache in read_segments(textbook, tokens, all_heads=True):
        segments += 1
        for total, block in zip(sums, cache.attention_blocks, strict=True):
            total += block.attention.a.max(-1).mean((0, 2))  # a (B, H, T, S + N)
    return [total / segments for total in sums]
