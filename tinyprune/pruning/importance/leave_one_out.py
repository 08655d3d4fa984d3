"""Leave one out: measure the exact difference in loss. (Michel, Levy & Neubig 2019, §3.2, ablate single heads so)

    score_h = loss without head h − loss with all          the same text, all other heads as they are

It reads the text once for each head: the most expensive criterion, and the only one that measures the loss directly. It
still ignores pairs: of two heads that do the same thing, either is dispensable, but not both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import open_heads
from tinyprune.pruning.importance.masks import Scores, with_heads
from tinyprune.training.evaluation import mean_loss


def leave_one_out(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores in nats per token, (H,) for each layer; `rng` is not used.

    A head whose gate is shut already scores 0.
    """
    present = open_heads(model)
    whole = mean_loss(with_heads(model, present), tokens)
    scores = [np.zeros(H) for H in model.config.heads]
    for layer, mask in enumerate(present):
        for h in np.flatnonzero(mask):
            mask[h] = False
            scores[layer][h] = mean_loss(with_heads(model, present), tokens) - whole
            mask[h] = True
    return scores
