"""Products and sums over rows, the primitives of most compositions. See `tinyprune.ops.products`.

    matmul            for r, o: out[r, o] = Σ_k a[r, k] · b[k, o] + bias[o]       and what comes right after it
    weight_gradient   for k, o: dW[k, o] = Σ_r x[r, k] · dout[r, o]
    column_sums       for o:    out[o] = Σ_r 1 · x[r, o]                          a row of ones times the matrix
    units_gradient    for r, h, i: da[r, h, i] = weights[h] · products[r, h, i], after a ReLU where r > 0

The product itself is `matmul.matmul`, which reads views where they lie: a few positions of x or a transposed W are not
copied. Sums start from the bias and from `onto`, so that neither costs a pass; the ReLU is one in place. Gradients of
the units of heads' networks are one pass in place of NumPy's five: a fourth of the time at preset `tiny`.
"""

import math
from functools import lru_cache

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.matmul import matmul as multiply
from tinyprune.ops.head_networks import check_units
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
    precision: str = "float32",
) -> NDArray:
    """Multiply the last axis of `a` by `b`, as `ops.matmul`; float32 or float64, or float32 rounded to bfloat16."""
    try:
        out = multiply(matrix(a), b, bias=bias, onto=None if onto is None else matrix(onto), precision=precision)
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


def weight_gradient(x: NDArray, dout: NDArray, *, precision: str = "float32") -> NDArray:
    """Return xᵀ dout over all rows, as `ops.weight_gradient`; float32 or float64, or float32 rounded to bfloat16."""
    try:
        return multiply(matrix(x), matrix(dout), transpose_a=True, precision=precision)
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


@parallel_kernel
def frozen_gradient(products, units, weights, relu, da, dots):
    """Set da = weights_h · products, after a ReLU · 0 where no unit > 0, and dots = products · units; all (R, H, N)."""
    R, H, N = units.shape
    zero, one = units.dtype.type(0), units.dtype.type(1)
    for r in prange(R):
        for h in range(H):
            for i in range(N):
                da[r, h, i] = weights[h] * products[r, h, i] * (zero if relu and not units[r, h, i] > zero else one)
                dots[r, h, i] = products[r, h, i] * units[r, h, i]


def units_gradient(
    products: NDArray, r: NDArray, weights: NDArray, scale: float, *, relu: bool = True
) -> tuple[NDArray, NDArray]:
    """Return the gradients of units and gates where parameters are frozen, as `ops.units_gradient`."""
    check_units(products, r, weights)
    check_floats(products=products, r=r, weights=weights)
    H = len(weights)
    by_head = math.prod(r.shape[:-1]), H, r.shape[-1] // max(H, 1)
    da, dots = workspace.empty(r.shape, r.dtype), workspace.empty(r.shape, r.dtype)
    given = flat(products).reshape(by_head), flat(r).reshape(by_head), np.ascontiguousarray(weights)
    frozen_gradient(*given, relu, da.reshape(by_head), dots.reshape(by_head))
    return da, scale * column_sums(dots).reshape(by_head[1:]).sum(1)
