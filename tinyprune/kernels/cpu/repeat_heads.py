"""Sums of the gradients of query heads that share a key or value. See `tinyprune.ops.repeat_heads`.

    for b, s, h:   out[b, s, index[h]] += x[b, s, h]

A thread takes whole positions; sums run in the order of the heads.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, check_floats, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.kernels.cpu.simd import add, lanes, load, number, store
from tinyprune.ops.repeat_heads import check_sum_heads


@kernel
def sum_row(row, dout, index, K, Dh, dx):
    """Add up the gradients of one position's heads."""
    H, L = index.size, lanes(dx)
    whole = Dh - Dh % L
    dx[row * K * Dh : (row + 1) * K * Dh] = 0
    for h in range(H):
        at, to = (row * H + h) * Dh, (row * K + index[h]) * Dh
        for d in range(0, whole, L):
            store(dx, to + d, add(load(dx, to + d), load(dout, at + d)))
        for d in range(whole, Dh):
            dx[to + d] += dout[at + d]


@parallel_kernel
def sum_shared(dout, index, rows, K, Dh, dx):
    """Compute dx; dout and dx are flat."""
    if dout.size < SMALL:
        for row in range(rows):
            sum_row(row, dout, index, K, Dh, dx)
    else:
        for row in prange(rows):
            sum_row(number(row), dout, index, K, Dh, dx)


def sum_heads(x: NDArray, index: Sequence[int] | NDArray, K: int) -> NDArray:
    """Sum the heads that belong together, as `ops.sum_heads`; float32 or float64."""
    check_sum_heads(x, index, K)
    check_floats(x=x)
    B, S, _, Dh = x.shape
    out = workspace.empty((B, S, K, Dh), x.dtype)
    sum_shared(flat(x), np.array(index, np.int64), B * S, K, Dh, out.reshape(-1))
    return out
