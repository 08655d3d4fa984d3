"""Adaptive embedding: rare words get narrow vectors, widened by a projection. See `tinyprune.ops.adaptive_embedding`.

    for each cluster c: rows = tables[c][ids of c] (· projections[c − 1]);  out[places of c] = factor · rows

The tokens of each cluster are found in main memory, where the ids are.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.layers.linear import linear_backward, linear_forward
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.masks import draw_mask
from tinyprune.kernels.cuda.vocabulary.embedding import sum_rows
from tinyprune.kernels.cuda.vocabulary.rows import put_rows, taken_rows
from tinyprune.ops.adaptive_embedding import check_projections, cluster_bounds
from tinyprune.ops.dropout import check_rate
from tinyprune.ops.embedding import check_ids


def adaptive_embedding_forward(
    ids: NDArray,
    tables: list[DeviceArray],
    projections: list[DeviceArray],
    *,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
    precision: str = "float32",
) -> tuple[DeviceArray, tuple]:
    """Look up `ids`, in main memory: `ops.adaptive_embedding_forward` for float32. For `precision` see `linear`."""
    check_floats(tables=tables, projections=projections)
    check_projections(tables, projections)
    bounds = cluster_bounds(tables)
    V, D = bounds[-1][1], tables[0].shape[1]
    check_ids(ids, V)
    check_rate("dropout", dropout)
    mask = draw_mask(dropout, rng, math.sqrt(D))
    flat = ids.reshape(-1).copy()  # the caller may overwrite `ids`
    out = empty((flat.size, D))
    places, linears = [], []
    for c, (first, end) in enumerate(bounds):
        place = np.flatnonzero((flat >= first) & (flat < end))
        rows, linear = taken_rows(tables[c], flat[place] - first), None
        if c > 0:
            rows, linear = linear_forward(rows, projections[c - 1], precision=precision)
        put_rows(rows, place, flat[place], mask, out)
        places.append(place)
        linears.append(linear)
    return out.reshape(*ids.shape, D), (ids.shape, flat, tables, places, linears, mask)


def adaptive_embedding_backward(dout: DeviceArray, cache: tuple) -> tuple[list[DeviceArray], list[DeviceArray]]:
    """Gradients of `adaptive_embedding_forward` in argument order, as `ops.adaptive_embedding_backward`."""
    shape, flat, tables, places, linears, mask = cache
    D = tables[0].shape[1]
    check_gradient(dout, (*shape, D))
    wide = contiguous(dout).reshape(flat.size, D)
    dtables, dprojections = [], []
    for c, (first, _) in enumerate(cluster_bounds(tables)):
        # out[place] = rows · factor
        drows = taken_rows(wide, places[c], flat[places[c]], mask)
        if c > 0:
            # rows = rows · projections[c − 1]
            drows, dprojection, _ = linear_backward(drows, linears[c])
            dprojections.append(dprojection)
        # rows = tables[c][flat[place] − first]
        dtables.append(sum_rows(drows, flat[places[c]] - first, len(tables[c])))
    return dtables, dprojections
