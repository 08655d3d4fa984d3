"""Evaluate how well a model predicts text that it was not trained on."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from tinyprune.data import Segments, evaluation_segments
from tinyprune.errors import NotFiniteError, UsageError
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Cache, Memory, Transformer

STREAMS = 16  # rows read in parallel where only means are needed
ROWS = 128  # positions whose log-probabilities of all V tokens are in memory at once


@dataclass(frozen=True)
class Evaluation:
    """The mean cross-entropy that a model reaches on a whole text.

    Attributes:
        nats_per_token: natural-log loss, averaged over all tokens but the first, which nothing precedes.
        tokens: number of predicted tokens.
        characters: number of characters that these tokens encode; 0 if some words became `<unk>`, see `Text`.
        segments: the nats per token of each segment or window, in the order of the text; the last may be shorter.
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


def evaluate_windows(model: Transformer, tokens: NDArray, characters: int, window: int, stride: int) -> Evaluation:
    """Read a text in windows that overlap, each without a memory, as papers on pruning report perplexity.

    A window begins `stride` tokens after the one before, and only what that one has not seen is predicted in it: the
    more windows overlap, the more a token's context has of the text before. The first token of a window without overlap
    is not predicted. (Hugging Face, *Perplexity of fixed-length models*; papers on pruning have stride = window.)

    Args:
        model: evaluated without noise.
        tokens: (n,), n ≥ 2.
        characters: number of characters of the text, for bits per character.
        window: how many tokens a window has, 2 at least. More than T are allowed where no parameter depends on T.
        stride: from 1 to window.

    Raises UsageError if a number is not allowed, or the text has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise UsageError(f"evaluation needs a text of at least 2 tokens, got {len(tokens)}")
    if window < 2:
        raise UsageError(f"window must be at least 2 tokens, got {window}")
    if not 1 <= stride <= window:
        raise UsageError(f"stride must be from 1 to the window, {window}; got {stride}")
    model, n, end = with_window(model, window), len(tokens), 0
    nats, sizes = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        for start in range(0, n, stride):
            seen, end = end, min(start + window, n)
            ids = np.asarray(tokens[start:end], np.int64)
            new = min(end - seen, len(ids) - 1)
            if new:
                ((log_p, _),) = last_tokens(model, [ids], [new])
                nats.append(-float(log_p.mean()))
                sizes.append(new)
            if end == n:
                break
    predicted = sum(sizes)
    mean = float(np.average(nats, weights=sizes))
    if not math.isfinite(mean):
        raise NotFiniteError(f"the loss on held-out text is {mean}")
    return Evaluation(mean, predicted, characters * predicted / n, tuple(nats))


def last_tokens(
    model: Transformer, texts: Sequence[NDArray], last: Sequence[int], B: int = 1
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield for each text (n,), n ≤ T + 1, how its last tokens are predicted from those before them.

    Args:
        model: without noise and memory.
        texts: two tokens at least.
        last: for each text how many, from 1 to n − 1.
        B: texts that are read at once; they should be about as long.

    Yields log p (last,) in nats, and whether each of these tokens is the likeliest (last,).
    """
    for start in range(0, len(texts), B):
        some, counts = texts[start : start + B], last[start : start + B]
        # zeros after a text are not seen
        h = model.forward(np.stack(list(zip_longest(*(text[:-1] for text in some), fillvalue=0)), 1))[0]
        host = model.ops.to_host(h)
        ends = [(row, len(text) - 1, k) for row, text, k in zip(host, some, counts, strict=True)]
        # all at once: each product reads the whole unembedding
        rows = model.ops.to_device(np.concatenate([row[end - k : end] for row, end, k in ends]))
        targets = np.concatenate([text[-k:] for text, k in zip(some, counts, strict=True)])
        parts = []
        for i in range(0, len(targets), ROWS):
            log_p = model.ops.to_host(model.log_probabilities(rows[i : i + ROWS]))
            own = targets[i : i + ROWS]
            parts.append((log_p[range(len(own)), own].astype(np.float64), log_p.argmax(-1) == own))
        joined = map(np.concatenate, zip(*parts, strict=True))
        yield from zip(*(np.split(values, np.cumsum(counts)[:-1]) for values in joined), strict=True)


def with_window(model: Transformer, window: int) -> Transformer:
    """Return a model that reads `window` tokens at once. Raises UsageError if its parameters are made for fewer."""
    config = dataclasses.replace(model.config, T=max(window, model.config.T))
    if parameter_shapes(config) != parameter_shapes(model.config):
        raise UsageError(f"window must be at most {model.config.T}, for which this model is made; got {window}")
    return dataclasses.replace(model, config=config)


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
    segments, memory = segments_of(tokens, model.config.T, streams), None
    for step in range(segments.per_epoch):
        ids, targets, _ = segments.batch(step)
        loss, memory, cache = model.loss(ids, targets, memory, all_heads=all_heads, frozen=frozen)
        yield loss, cache


def segments_of(tokens: NDArray, T: int, streams: int = STREAMS) -> Segments:
    """Return the segments that `read_segments` reads."""
    return Segments(tokens, max(1, min(streams, (len(tokens) - 1) // T)), T)


def mean_loss(model: Transformer, tokens: NDArray) -> float:
    """Return the mean cross-entropy over whole segments of a text, nats per token; see `read_segments`."""
    return float(np.mean([float(loss) for loss, _ in read_segments(model, tokens)]))
