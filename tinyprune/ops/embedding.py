"""Embedding: look up a vector for each token, scale it, drop whole words.

    out_bt = scale · E[ids_bt] · keep[ids_bt] / (1 − rate)        ids (B, T)   E (V, D)   keep (V,)

A scale of √D gives vectors that are also the output's weights ("tied") a size fit for the input (Vaswani et al. 2017,
§3.4).
Word dropout takes a word out wherever it stands in the batch (Gal & Ghahramani 2016, §4.2), not single features.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.dropout import check_rate, draw_keys, keep_mask
from tinyprune.ops.rows import check_ids, sum_rows


def embedding_forward(
    ids: NDArray,
    E: NDArray,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray, tuple]:
    """Look up the rows `ids` of `E`.

    Args:
        ids: token numbers, integers in 0 … V−1, any shape.
        E: embeddings, (V, D), any float or complex dtype.
        scale: factor on the vectors; None: √D.
        dropout: share of the V words to drop, 0 ≤ dropout < 1.
        rng: where the dropped words are drawn from, or None for evaluation.

    Returns:
        out: (*ids.shape, D), dtype of `E`.
        cache: what `embedding_backward` needs.

    Raises:
        ValueError: if `E` is no matrix, an id is not an integer in 0 … V−1, or `dropout` is out of range.
    """
    check_arguments(ids, E, dropout)
    V, D = E.shape
    scale = math.sqrt(D) if scale is None else scale
    out = E[ids]
    out *= scale
    factor = None
    if rng is not None and dropout > 0:
        keep = keep_mask((V,), dropout, draw_keys(rng))
        factor = (keep / (1 - dropout)).astype(E.real.dtype)[ids][..., None]
        out *= factor
    return out, (ids, E.shape, scale, factor)


def embedding_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `embedding_forward` with respect to `E`: each row sums over the places of its word.

        dE[v] = scale · Σ_{(b,t): ids_bt = v} dout_bt · keep[v] / (1 − rate)

    Args:
        dout: gradient of the loss with respect to `out`, (*ids.shape, D). Not modified.

    Returns:
        dE: (V, D).
    """
    ids, (V, D), scale, factor = cache
    # out *= factor
    rows = dout if factor is None else dout * factor
    # out = E[ids]; out *= scale
    dE = sum_rows(rows.reshape(-1, D), ids.reshape(-1), V)
    dE *= scale
    return dE


def check_arguments(ids: NDArray, E: NDArray, dropout: float) -> None:
    """Raise ValueError, naming the argument, unless `E` is a matrix, ids are its rows, and the rate is in range."""
    if E.ndim != 2:
        raise ValueError(f"E must be (V, D), got {E.shape}")
    check_ids(ids, len(E))
    check_rate("dropout", dropout)
