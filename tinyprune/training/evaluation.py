"""Evaluate how well a model predicts text that it was not trained on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyprune.data import Segments, evaluation_segments
from tinyprune.errors import NotFiniteError
from tinyprune.model.transformer import Cache, Memory, Transformer

STREAMS = 16  # rows read in parallel where only means are needed


@dataclass(frozen=True)
class Evaluation:
    """The mean cross-entropy that a model reaches on a whole text.

    Attributes:
        nats_per_token: natural-log loss, averaged over all tokens but the first, which nothing precedes.
        tokens: number of predicted tokens.
        characters: number of characters that these tokens encode; 0 if some words became `<unk>`, see `Text`.
        segments: the nats per token of each segment of T tokens, in the order of the text; the last may be shorter.
    """

    nats_per_token: float
    tokens: int
    characters: float
    segments: tuple[float, ...] = ()

    @property
    def perplexity(self) -> float:
        """Return exp(nats per token), the number of equally likely tokens that is as uncertain; inf on overflow."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """Return the bits per character of the text, whatever the tokens are; None if words became `<unk>`.

        Telling such words apart would otherwise cost nothing.
        """
        if not self.characters:
            return None
        return self.nats_per_token / math.log(2) * self.tokens / self.characters


def evaluate(model: Transformer, tokens: NDArray, characters: int, limit: int = 0) -> Evaluation:
    """Read a text, or its first `limit` tokens if that is not 0, once, with the memory carried along.

    Args:
        model: evaluated without noise: no dropout, gates at their evaluation value.
        tokens: (n,), n ≥ 2.
        characters: number of characters of the text, for bits per character.
    """
    part, losses, sizes = tokens[: limit or None], [], []
    memory: Memory | None = None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # checked below
        for ids, targets in evaluation_segments(part, model.config.T):
            loss, memory, _ = model.loss(ids, targets, memory)
            losses.append(loss)
            sizes.append(targets.size)
    # converted last: float() waits for a GPU
    nats = tuple(float(loss) for loss in losses)
    total = sum(x * size for x, size in zip(nats, sizes, strict=True))
    predicted = sum(sizes)
    if not math.isfinite(total):
        raise NotFiniteError(f"the loss on held-out text is {total}")
    return Evaluation(total / predicted, predicted, characters * predicted / len(tokens), nats)


def read_segments(
    model: Transformer, tokens: NDArray, streams: int = STREAMS, all_heads: bool = False, frozen: bool = False
) -> Iterator[tuple[np.inexact, Cache]]:
    """Read a text without noise, with the memory carried along; yield loss and cache of each segment.

    Args:
        model: evaluated.
        tokens: the text, (n,).
        streams: rows of a batch, each with another part of the text; fewer if the text is too short for that.
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
    """Return the mean cross-entropy over whole segments of a text, nats per token; see `read_segments`."""
    return float(np.mean([float(loss) for loss, _ in read_segments(model, tokens)]))
