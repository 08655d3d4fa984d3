"""How well a model predicts a text that it has not been trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyprune.data import evaluation_segments
from tinyprune.errors import NotFiniteError
from tinyprune.model.transformer import Memory, Transformer


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy over a whole text.

    Attributes:
        nats_per_token: natural-log loss, averaged over all tokens but the first, which nothing precedes.
        tokens: how many were predicted.
        characters: how many characters of text these tokens stand for; 0 if they do not stand for it, see `Text`.
    """

    nats_per_token: float
    tokens: int
    characters: float

    @property
    def perplexity(self) -> float:
        """exp(nats per token): as unsure as among so many equally likely tokens; inf beyond what a float holds."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """Bits needed for each character of the text, whatever the tokens are; None if words became `<unk>`.

        Words that are one and the same `<unk>` to the model would come for free.
        """
        if not self.characters:
            return None
        return self.nats_per_token / math.log(2) * self.tokens / self.characters


def evaluate(model: Transformer, tokens: NDArray, characters: int) -> Evaluation:
    """Read a whole text once, from its first to its last token, memory carried all the way.

    Args:
        model: evaluated without noise: no dropout, gates at their evaluation value.
        tokens: (n,), n ≥ 2.
        characters: of the text, for bits per character.
    """
    losses, sizes = [], []
    memory: Memory | None = None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # seen below
        for ids, targets in evaluation_segments(tokens, model.config.T):
            loss, memory, _ = model.loss(ids, targets, memory)
            losses.append(loss)
            sizes.append(targets.size)
    # only now: with a GPU, to look at a number is to wait for it
    total = sum(float(loss) * size for loss, size in zip(losses, sizes, strict=True))
    predicted = sum(sizes)
    if not math.isfinite(total):
        raise NotFiniteError(f"the loss on held-out text is {total}")
    return Evaluation(total / predicted, predicted, characters * predicted / len(tokens))
