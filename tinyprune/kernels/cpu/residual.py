"""Residual connection: add to x what dropout leaves of y. See `tinyprune.ops.residual`.

    for i: out[i] = x[i] + y[i] · (1 / (1 − dropout) if kept(i) else 0)

One pass over x and y instead of one for the mask, two for dropout and one for the sum.

Times (µs, 2 threads), x (16, 128, 128) in float32: 27, NumPy 370; without dropout 21, NumPy 32.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.add import add
from tinyprune.kernels.cpu.arguments import SMALL, alike, check_alike, flat
from tinyprune.kernels.cpu.dropout import dropout_backward, keep_factor, threshold
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.ops.dropout import check_rate, draw_keys


@parallel_kernel
def add_dropped(x, y, factor, key0, key1, limit, out):
    """out = x + y · (factor where kept, else 0), all 1-D."""
    factor = x.dtype.type(factor)
    key0, key1, limit = np.uint32(key0), np.uint32(key1), np.uint32(limit)
    if x.size < SMALL:
        for i in range(x.size):
            out[i] = x[i] + y[i] * keep_factor(i, factor, key0, key1, limit)
    else:
        for i in prange(x.size):
            out[i] = x[i] + y[i] * keep_factor(i, factor, key0, key1, limit)


def residual_forward(
    x: NDArray, y: NDArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[NDArray, tuple]:
    """x + dropout(y). Arguments, results and errors as in `ops.residual_forward`; float32 or float64."""
    if not alike(x, y):
        check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    if rng is None or dropout == 0:
        return add(x, y), (None, 0.0, x.shape, x.dtype)
    keys = draw_keys(rng)
    out = workspace.empty(x.shape, x.dtype)
    add_dropped(flat(x), flat(y), 1 / (1 - dropout), *keys, threshold(dropout), out.ravel())
    return out, (keys, dropout, x.shape, x.dtype)


def residual_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Gradients of `residual_forward`, as `ops.residual_backward`: `dout` itself for x, what dropout leaves for y."""
    # out = x + dropout(y)
    return dout, dropout_backward(dout, cache)
