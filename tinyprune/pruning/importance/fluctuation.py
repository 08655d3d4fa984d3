"""Fluctuation: how much a head's part of its layer's output varies over the text. (FLAP; An et al. 2023, 2312.11983)

    score_h = Σ_j var(X_j) ‖W_j‖²       over the head's outputs j, X_j, and the rows of Wo that they meet

A head whose output hardly varies can be replaced by its mean, which fits into the bias bo, see `pruning.repair`. A head
that has a network adds what its units and values give by the same formula. As in FLAP, scores are standardised within
each layer, so that layers can be compared: its mean is taken off and its standard deviation divided out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance.fits import read_fits
from tinyprune.pruning.importance.masks import Scores


def fluctuation(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores from one reading of `tokens`, (H,) for each layer; `rng` is not used."""
    scores = []
    for fits in read_fits(model, tokens):
        score = np.sum([fit.fluctuation() for fit in fits], 0)
        scores.append((score - score.mean()) / max(score.std(), np.finfo(float).tiny) if score.size else score)
    return scores
