"""Embedding: look up a vector for each token, scale it, drop whole words. See `tinyprune.ops.embedding`.

    for each place r:  out[r] = E[ids[r]] · factor(ids[r])          factor(v) = √D · keep(v) / (1 − dropout)
    for each word v:   dE[v] = factor(v) · Σ dout[r] over the places r where v stands, in their order

Backward first sorts the places by word, a counting sort, so that each row of dE is written once, by one thread, and
summed in the order of the places. NumPy's argsort and reduceat copy all rows before they sum them. Word dropout is a
factor of the row.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, check_gradient, contiguous, flat
from tinyprune.kernels.cpu.dropout import keep_factor
from tinyprune.kernels.cpu.jit import kernel, loop_kernel, parallel_kernel
from tinyprune.kernels.formulas import draw_mask
from tinyprune.ops.embedding import check_arguments
from tinyprune.ops.rows import check_each_row, check_rows_index


@kernel
def scaled(source, times, target):
    """Set target = source · times, both 1-D."""
    for d in range(target.size):
        target[d] = source[d] * times


@loop_kernel
def look_up(ids, E, factor, key0, key1, limit, out):
    """Set out (R, D) to the rows `ids` of E, times the factor, or times 0 if the word is dropped."""
    factor = E.dtype.type(factor)
    key0, key1, limit = np.uint32(key0), np.uint32(key1), np.uint32(limit)
    for r in prange(ids.size):
        scaled(E[ids[r]], keep_factor(ids[r], factor, key0, key1, limit), out[r])


@kernel
def places_by_word(ids, V):
    """Sort places by word, a counting sort: those of word v, in order, are places[starts[v] : starts[v + 1]]."""
    starts = np.zeros(V + 2, np.int64)
    for word in ids:
        starts[word + 2] += 1
    for v in range(2, V + 2):
        starts[v] += starts[v - 1]
    # starts[v + 1] is where v begins; as its places are filled in, it moves to where v ends
    places = np.empty(ids.size, np.int64)
    for r in range(ids.size):
        places[starts[ids[r] + 1]] = r
        starts[ids[r] + 1] += 1
    return starts, places


@parallel_kernel
def sum_by_word(ids, dout, factor, key0, key1, limit, dE):
    """Set dE (V, D) to the sums of the rows of dout (R, D) by word, times the factor or 0 as in `look_up`."""
    V, D = dE.shape
    factor = dE.dtype.type(factor)
    key0, key1, limit = np.uint32(key0), np.uint32(key1), np.uint32(limit)
    starts, places = places_by_word(ids, V)
    for v in prange(V):
        row = dE[v]
        row[:] = 0
        for k in range(starts[v], starts[v + 1]):
            source = dout[places[k]]
            for d in range(D):
                row[d] += source[d]
        if starts[v] < starts[v + 1]:
            scaled(row, keep_factor(v, factor, key0, key1, limit), row)


def embedding_forward(
    ids: NDArray,
    E: NDArray,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray, tuple]:
    """Look up the rows `ids` of `E`, as `ops.embedding_forward`; `E` is float32 or float64."""
    check_arguments(ids, E, dropout)
    check_floats(E=E)
    D = E.shape[1]
    mask = draw_mask(dropout, rng, math.sqrt(D) if scale is None else scale)
    places = ids.astype(np.int64).reshape(-1)  # a copy, for backward: the caller may fill `ids` anew
    out = workspace.empty((*ids.shape, D), E.dtype)
    look_up(out.size, places, contiguous(E), *mask, out.reshape(-1, D))
    return out, (places, out.shape, E.shape, E.dtype, mask)


def embedding_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `embedding_forward` with respect to `E`, as `ops.embedding_backward`."""
    places, shape, (V, D), dtype, mask = cache
    check_gradient(dout, shape, dtype)
    dE = workspace.empty((V, D), dtype)
    # out[r] = E[places[r]] · factor
    sum_by_word(places, contiguous(dout).reshape(-1, D), *mask, dE)
    return dE


def sum_rows(rows: NDArray, index: NDArray, n: int) -> NDArray:
    """Sum the rows of each place, as `ops.sum_rows`; float32 or float64."""
    check_rows_index(index, n)
    check_each_row(rows, index, rows)
    check_floats(rows=rows)
    total = workspace.empty((n, rows.shape[1]), rows.dtype)
    sum_by_word(flat(index.astype(np.int64, copy=False)), contiguous(rows), 1.0, 0, 0, 0, total)
    return total
