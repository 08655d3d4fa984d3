"""Leave one out: the exact difference in loss, by trying. (Michel, Levy & Neubig 2019, §3.2, ablate single heads so)

    score_h = loss without head h − loss with all          the same text, all other heads as they are

One reading of the text for each head: the dearest criterion, and the only one that measures what it wants to know. It
still knows nothing of pairs: two heads that do the same thing are both dispensable, but not together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import open_heads
from tinyprune.pruning.importance.masks import Scores, with_heads
from tinyprune.pruning.importance.reading import mean_loss


def leave_one_out(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Scores in nats per token, (H,) for each layer; `rng` is not used.

    A head whose gate is shut already makes no difference: 0.
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
