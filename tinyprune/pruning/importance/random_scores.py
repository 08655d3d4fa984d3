"""Random scores: the baseline that every other criterion has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance.masks import Scores


def random_scores(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Draw uniform numbers, (H,) for each layer; `tokens` is not used."""
    return [rng.random(H) for H in model.config.heads]
