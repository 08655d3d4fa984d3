"""Repeat heads: copies of the keys or values that several query heads share. See `tinyprune.ops.repeat_heads`.

    for b, s, h:   out[b, s, h] = x[b, s, index[h]]
    for b, s, h:   dx[b, s, index[h]] += dout[b, s, h]

The copies are NumPy's, into memory that is kept: a kernel for them took longer (46 µs against 32 below). In the sums a
thread takes whole positions; they run in the order of the heads.

Times (µs, one thread, the least of 60 calls on a machine with other work), x (4, 256, 3, 64) to 9 heads
in float32: forward 32; backward 63, NumPy 210.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, check_floats, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.kernels.cpu.simd import add, lanes, load, number, store
from tinyprune.ops.repeat_heads import check_arguments


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


def repeat_heads_forward(x: NDArray, index: Sequence[int] | NDArray) -> tuple[NDArray, tuple]:
    """Copy the head `index[h]` of `x` to head h: `ops.repeat_heads_forward` for float32 or float64."""
    check_arguments(x, index)
    check_floats(x=x)
    B, S, _, Dh = x.shape
    places = np.array(index, np.int64)
    out = workspace.empty((B, S, len(places), Dh), x.dtype)
    np.take(x, places, axis=2, out=out, mode="clip")  # they are in range; another mode would copy `out`
    return out, (places, x.shape, x.dtype)


def repeat_heads_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `repeat_heads_forward` with respect to `x`, as `ops.repeat_heads_backward`."""
    places, shape, dtype = cache
    B, S, K, Dh = shape
    check_gradient(dout, (B, S, len(places), Dh), dtype)
    dx = workspace.empty(shape, dtype)
    # out[:, :, h] = x[:, :, index[h]]
    sum_shared(flat(dout), places, B * S, K, Dh, dx.reshape(-1))
    return dx
