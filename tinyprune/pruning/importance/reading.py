"""Read a text with a model, for the criteria that look at data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyprune.data import Segments
from tinyprune.model.transformer import Cache, Transformer

STREAMS = 16  # rows read in parallel by criteria that need only means


def read(
    model: Transformer, tokens: NDArray, streams: int = STREAMS, all_heads: bool = False, frozen: bool = False
) -> Iterator[tuple[np.inexact, Cache]]:
    """Read a text without noise, with the memory carried along; yield loss and cache of each segment.

    Args:
        model: evaluated.
        tokens: the text, (n,).
        streams: rows of a batch, each with its own part of the text; fewer if the text is too short for that.
        all_heads: compute closed heads too.
        frozen: the backward pass, if there is one, is for the gates alone.

    Raises:
        UsageError: if the text is shorter than one segment.
    """
    T = model.config.T
    segments = Segments(tokens, max(1, min(streams, (len(tokens) - 1) // T)), T)
    memory = None
    for step in range(segments.per_epoch):
        ids, targets, _ = segments.batch(step)
        loss, memory, cache = model.loss(ids, targets, memory, all_heads=all_heads, frozen=frozen)
        yield loss, cache


def mean_loss(model: Transformer, tokens: NDArray) -> float:
    """Return the mean cross-entropy over the text, nats per token."""
    return float(np.mean([float(loss) for loss, _ in read(model, tokens)]))
