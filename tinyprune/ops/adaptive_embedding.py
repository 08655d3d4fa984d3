"""Adaptive embedding: rare words get narrow vectors, widened by a projection. (Baevski & Auli 2019, §3)

The vocabulary, sorted by falling frequency, is cut into clusters 0 … C. Cluster c has a table of its own:

    out = √D · tables[c][ids − first_c] · projections[c − 1] · keep[ids] / (1 − rate)

    tables[c] (V_c, D_c)    D_0 = D and D_c = D / div_value^c    projections[c − 1] (D_c, D), none for c = 0

Tables and projections are tied: the adaptive softmax uses the same ones.
"""

import math
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.dropout import check_rate, draw_keys, keep_mask
from tinyprune.ops.embedding import check_ids, sum_rows
from tinyprune.ops.linear import linear_backward, linear_forward

# The operations that this one is made of; a compiled backend hands in its own.
TEXTBOOK = SimpleNamespace(linear_forward=linear_forward, linear_backward=linear_backward, sum_rows=sum_rows)


def cluster_bounds(tables: list[NDArray]) -> list[tuple[int, int]]:
    """Return the first id and one past the last id of each cluster, from the heights of the tables."""
    ends = np.cumsum([len(table) for table in tables]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def check_projections(tables: list[NDArray], projections: list[NDArray]) -> None:
    """Raise ValueError unless every table but the first has a projection to the width of the first."""
    if len(projections) != len(tables) - 1:
        raise ValueError(
            f"projections must be {len(tables) - 1}, one for each table but the first, got {len(projections)}"
        )
    for c, (table, projection) in enumerate(zip(tables[1:], projections, strict=True)):
        shape = (table.shape[1], tables[0].shape[1])
        if projection.shape != shape:
            raise ValueError(f"projections[{c}] must have shape {shape}, got {projection.shape}")


def adaptive_embedding_forward(
    ids: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    *,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
    parts: SimpleNamespace = TEXTBOOK,
) -> tuple[NDArray, tuple]:
    """Look up each id in its cluster's table and project it to the model's width.

    Args:
        ids: token numbers, integers in 0 … V−1 with V = Σ V_c, any shape.
        tables: C + 1 arrays (V_c, D_c), the first with D_0 = D; any float or complex dtype.
        projections: C arrays (D_c, D), for the clusters 1 … C.
        dropout: share of the V words to drop, 0 ≤ dropout < 1.
        rng: where the dropped words are drawn from, or None for evaluation.
        parts: the operations to compute with, forward and backward.

    Returns:
        out: (*ids.shape, D), dtype of the tables.
        cache: what `adaptive_embedding_backward` needs.

    Raises:
        ValueError: if an id is not an integer in 0 … V−1, or there is not one projection for each table but the first.
    """
    check_projections(tables, projections)
    bounds = cluster_bounds(tables)
    V, D = bounds[-1][1], tables[0].shape[1]
    check_ids(ids, V)
    check_rate("dropout", dropout)
    flat = ids.reshape(-1)
    out = np.empty((flat.size, D), tables[0].dtype)
    places, linears = [], []
    for c, (first, end) in enumerate(bounds):
        place = np.flatnonzero((flat >= first) & (flat < end))
        rows, linear = tables[c][flat[place] - first], None
        if c > 0:
            rows, linear = parts.linear_forward(rows, projections[c - 1])
        out[place] = rows
        places.append(place)
        linears.append(linear)
    out *= math.sqrt(D)
    factor = None
    if rng is not None and dropout > 0:
        keep = keep_mask((V,), dropout, draw_keys(rng))
        factor = (keep / (1 - dropout)).astype(out.real.dtype)[flat][:, None]
        out *= factor
    return out.reshape(*ids.shape, D), (flat, tables, places, linears, factor, parts)


def adaptive_embedding_backward(dout: NDArray, cache: tuple) -> tuple[list[NDArray], list[NDArray]]:
    """Return the gradients of `adaptive_embedding_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (*ids.shape, D). Not modified.

    Returns:
        dtables: (V_c, D_c) each.   dprojections: (D_c, D) each.
    """
    flat, tables, places, linears, factor, parts = cache
    D = tables[0].shape[1]
    # out *= √D; out *= factor
    rows_wide = dout.reshape(-1, D) * math.sqrt(D)
    if factor is not None:
        rows_wide *= factor
    dtables, dprojections = [], []
    for c, (first, _) in enumerate(cluster_bounds(tables)):
        drows = rows_wide[places[c]]
        if c > 0:
            # out[place] = rows @ projections[c - 1]
            drows, dprojection, _ = parts.linear_backward(drows, linears[c])
            dprojections.append(dprojection)
        # rows = tables[c][flat[place] - first]
        dtables.append(parts.sum_rows(drows, flat[places[c]] - first, len(tables[c])))
    return dtables, dprojections
