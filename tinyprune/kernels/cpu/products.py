"""Products and sums over rows, the primitives of most compositions. See `tinyprune.ops.products`.

    matmul            for r, o: out[r, o] = Σ_k a[r, k] · b[k, o] + bias[o]       and what comes right after it
    weight_gradient   for k, o: dW[k, o] = Σ_r x[r, k] · dout[r, o]
    column_sums       for o:    out[o] = Σ_r 1 · x[r, o]                          a row of ones times the matrix

The product itself is `matmul.matmul`, which reads views where they lie: a few positions of x or a transposed W are not
copied. Sums start from the bias and from `onto`, so that neither costs a pass; the ReLU is one in place.
"""

from functools import lru_cache

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.matmul import matmul as multiply
from tinyprune.ops.products import check_matmul, check_rows, check_weight_gradient


@parallel_kernel
def rectify(a):
    """Set a = max(a, 0), in place; NaN stays."""
    zero = a.dtype.type(0)
    for i in prange(a.size):
        a[i] = zero if a[i] < zero else a[i]


@parallel_kernel
def rectify_gradient(dh, h, da):
    """Set da = dh where h > 0, and dh · 0 elsewhere."""
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    for i in prange(h.size):
        da[i] = dh[i] * (one if h[i] > zero else zero)


def matrix(x: NDArray) -> NDArray:
    """Return `x` as a matrix: a vector becomes one row."""
    return x[None] if x.ndim == 1 else x


def matmul(
    a: NDArray,
    b: NDArray,
    *,
    bias: NDArray | None = None,
    relu: bool = False,
    where: NDArray | None = None,
    onto: NDArray | None = None,
) -> NDArray:
    """Multiply the last axis of `a` by `b`, as `ops.matmul`; float32 or float64."""
    try:
        out = multiply(matrix(a), b, bias=bias, onto=None if onto is None else matrix(onto))
        if where is not None and (where.dtype != out.dtype or where.shape != (*a.shape[:-1], b.shape[1])):
            raise ValueError
    except (ValueError, IndexError):
        # check by the names of this function only now that something is wrong: checking takes time
        check_matmul(a, b, bias, relu, where, onto)
        check_floats(a=a, b=b, bias=bias, where=where, onto=onto)
        raise
    if relu:
        rectify(out.reshape(-1))
    if where is not None:
        rectify_gradient(out.reshape(-1), flat(where), out.reshape(-1))
    return out if a.ndim > 1 else out[0]


def weight_gradient(x: NDArray, dout: NDArray) -> NDArray:
    """Return xᵀ dout over all rows, as `ops.weight_gradient`; float32 or float64."""
    try:
        return multiply(matrix(x), matrix(dout), transpose_a=True)
    except (ValueError, IndexError):
        check_weight_gradient(x, dout)
        check_floats(x=x, dout=dout)
        raise


@lru_cache(maxsize=64)
def ones(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Return ones. Do not write to them: they are not flagged read-only, because kernels would then copy them."""
    return np.ones(shape, dtype)


def column_sums(x: NDArray) -> NDArray:
    """Sum over all rows, (..., O) → (O,), as `ops.column_sums`; float32 or float64."""
    check_rows("x", x)
    check_floats(x=x)
    rows = matrix(x)
    return multiply(ones((*rows.shape[:-1], 1), rows.dtype), rows, transpose_a=True).reshape(-1)
