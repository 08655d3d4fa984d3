"""Magnitude: a head with small matrices changes little, whatever it looks at.

    score_h = ‖Wv^h‖ · ‖Wo^h‖          Frobenius norms of the Dh columns of Wv that it reads and its Dh rows of Wo
            + ‖pk^h‖ · ‖pv^h‖          if it has a network, of that network's keys and values

The product bounds what the head can add for a context of a given size. It does not change when Wv^h is multiplied by a
factor and Wo^h divided by it, which (if the head's persistent values are scaled with Wv^h) leaves the model the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance.masks import Scores


def magnitude(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Return scores from the weights alone, (H,) for each layer; `tokens` and `rng` are not used."""
    D, Dh = model.config.D, model.config.Dh
    params, scores = model.host_params(), []
    for i, H in enumerate(model.config.heads):
        Wv, Wo = params[f"layers.{i}.Wv"], params[f"layers.{i}.Wo"]
        values = np.sqrt((Wv.reshape(D, -1, Dh) ** 2).sum((0, 2)))
        if (groups := model.config.groups(i)) is not None:
            values = values[list(groups)]
        outputs = np.sqrt((Wo.reshape(H, Dh, D) ** 2).sum((1, 2)))
        scores.append(values * outputs)
        if model.config.networks:
            pk, pv = (np.sqrt((params[f"layers.{i}.net.{name}"] ** 2).sum((1, 2))) for name in ("pk", "pv"))
            scores[-1] += pk * pv
    return scores
