"""Adaptive embedding: rare words get narrow vectors, widened by a projection. (Baevski & Auli 2019, §3)

The vocabulary, sorted by falling frequency, is cut into clusters 0 … C. Each has a table:

    out = √D · tables[c][ids − first_c] · projections[c − 1] · keep[ids] / (1 − rate)

    tables[c] (V_c, D_c)    D_0 = D and D_c = D / div_value^c    projections[c − 1] (D_c, D), none for c = 0

Tables and projections are tied: the adaptive softmax uses the same ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.dropout import check_rate, draw_keys, keep_mask
from tinyprune.ops.rows import check_ids

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


class Cluster(NamedTuple):
    """Where the words of one cluster stand in a batch."""

    place: NDArray  # numbers of the positions, (n,)
    words: NDArray  # rows of the cluster's table, (n,)
    linear: Any  # cache of the projection


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
    ops: Engine,
    ids: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    *,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray, tuple]:
    """Look up each id in its cluster's table and project it to the model's width.

    Args:
        ops: computes the parts; `ops.adaptive_embedding_forward` passes itself.
        ids: token numbers, integers in 0 … V−1 with V = Σ V_c, any shape, in main memory.
        tables: C + 1 arrays (V_c, D_c), the first with D_0 = D; any float or complex dtype.
        projections: C arrays (D_c, D), for the clusters 1 … C.
        dropout: share of the V words to drop, 0 ≤ dropout < 1.
        rng: where the dropped words are drawn from, or None for evaluation.

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
    clusters, vectors = [], []
    for c, (first, end) in enumerate(bounds):
        place = np.flatnonzero((flat >= first) & (flat < end))
        words = flat[place] - first
        of_words, linear = ops.take_rows(tables[c], words), None
        if c > 0:
            of_words, linear = ops.linear_forward(of_words, projections[c - 1])
        clusters.append(Cluster(place, words, linear))
        vectors.append(of_words)
    in_order = np.argsort(np.concatenate([cluster.place for cluster in clusters]))
    out = ops.take_rows(ops.concatenate(vectors), in_order)
    real = np.empty(0, tables[0].dtype).real.dtype
    factors = [np.full(flat.size, math.sqrt(D), real)]
    if rng is not None and dropout > 0:
        factors.append((keep_mask((V,), dropout, draw_keys(rng)) / (1 - dropout)).astype(real)[flat])
    for factor in factors:
        out = ops.multiply_rows(out, factor)
    return out.reshape(*ids.shape, D), (clusters, [len(table) for table in tables], factors)


def adaptive_embedding_backward(ops: Engine, dout: NDArray, cache: tuple) -> tuple[list[NDArray], list[NDArray]]:
    """Return the gradients of `adaptive_embedding_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (*ids.shape, D). Not modified.

    Returns:
        dtables: (V_c, D_c) each.   dprojections: (D_c, D) each.
    """
    clusters, heights, factors = cache
    # out *= √D; out *= keep / (1 − rate)
    wide = dout.reshape(len(factors[0]), dout.shape[-1])
    for factor in factors:
        wide = ops.multiply_rows(wide, factor)
    dtables, dprojections = [], []
    for (place, words, linear), height in zip(clusters, heights, strict=True):
        drows = ops.take_rows(wide, place)
        if linear is not None:
            # out[place] = tables[c][words] @ projections[c - 1]
            drows, dprojection, _ = ops.linear_backward(drows, linear)
            dprojections.append(dprojection)
        # tables[c][words]
        dtables.append(ops.sum_rows(drows, words, height))
    return dtables, dprojections
