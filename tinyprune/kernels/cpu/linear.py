"""Linear: multiply the last axis by a matrix and add a bias. See `tinyprune.ops.linear`.

    for r, o: out[r, o] = b[o] + Σ_k x[r, k] · W[k, o]

Three products, see `matmul`. Nothing is copied first, though x may be a view of a few positions and W a transposed one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, check_gradient
from tinyprune.kernels.cpu.matmul import matmul


def column_sums(rows: NDArray) -> NDArray:
    """Σ over all rows, (..., O) → (O,): a row of ones times the matrix, so that the sums stay in registers."""
    ones = np.ones((*rows.shape[:-1], 1), rows.dtype)
    return matmul(ones, rows, transpose_a=True)[0]


def linear_forward(x: NDArray, W: NDArray, b: NDArray | None = None) -> tuple[NDArray, tuple]:
    """Multiply the last axis of `x` by `W` and add `b`: `ops.linear_forward` for float32 and float64."""
    check_floats(x=x, W=W)
    if W.ndim != 2 or x.ndim < 1 or x.shape[-1] != W.shape[0]:
        raise ValueError(f"x must have {W.shape[0]} features to match W {W.shape}, got x {x.shape}")
    if b is not None:
        check_floats(x=x, b=b)
        if b.shape != W.shape[1:]:
            raise ValueError(f"b must have shape ({W.shape[1]},) to match W {W.shape}, got {b.shape}")
    out = matmul(np.atleast_2d(x), W, bias=b)
    return out.reshape(*x.shape[:-1], W.shape[1]), (x, W, b is not None)


def linear_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray, NDArray | None]:
    """Gradients of `linear_forward`, as `ops.linear_backward`."""
    x, W, has_bias = cache
    check_gradient(dout, (*x.shape[:-1], W.shape[1]), x.dtype)
    rows = np.atleast_2d(dout)
    # out = x @ W
    dx = matmul(rows, W, transpose_b=True).reshape(x.shape)
    dW = matmul(np.atleast_2d(x), rows, transpose_a=True)
    # out += b
    return dx, dW, column_sums(rows) if has_bias else None
