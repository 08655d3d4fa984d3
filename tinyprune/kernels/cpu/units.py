"""What the heads' networks need beside products: values times gates, and the gradients of both. See
`tinyprune.ops.rows` and `tinyprune.ops.head_networks`.

    multiply_rows    for r, i:    out[r, i] = factors[r] · x[r, i]
    row_dots         for r:       out[r] = factor · Σ_i x[r, i] · y[r, i]
    units_gradient   for r, h, i: da[r, h, i] = weights[h] · products[r, h, i] where r > 0

The gates multiply the values, which are few, and not the units, one for each position. NumPy multiplies them, into
memory that is kept.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import alike, check_alike, check_floats, flat
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.products import column_sums
from tinyprune.ops.head_networks import check_units
from tinyprune.ops.rows import check_factors, check_row_dots


@parallel_kernel
def frozen_gradient(products, units, weights, da, dots):
    """Set da = weights_h · products where units > 0, and · 0 elsewhere, and dots = products · units; all (R, H, N)."""
    R, H, N = units.shape
    zero, one = units.dtype.type(0), units.dtype.type(1)
    for r in prange(R):
        for h in range(H):
            for i in range(N):
                da[r, h, i] = weights[h] * products[r, h, i] * (one if units[r, h, i] > zero else zero)
                dots[r, h, i] = products[r, h, i] * units[r, h, i]


def multiply_rows(x: NDArray, factors: NDArray) -> NDArray:
    """Multiply each row by its factor, as `ops.multiply_rows`; float32 or float64."""
    check_factors(x, factors)
    check_floats(x=x, factors=factors)
    out = workspace.empty(x.shape, x.dtype)
    return np.multiply(factors.reshape(-1, *(1,) * (x.ndim - 1)), x, out=out)


def row_dots(x: NDArray, y: NDArray, factor: float = 1.0) -> NDArray:
    """Return the sum of products of each row, as `ops.row_dots`; float32 or float64."""
    check_row_dots(x, y)
    if not alike(x, y):
        check_alike(x=x, y=y)
    products = workspace.empty(x.shape, x.dtype)
    np.multiply(x, y, out=products)
    return factor * products.reshape(len(x), math.prod(x.shape[1:])).sum(1)


def units_gradient(products: NDArray, r: NDArray, weights: NDArray, scale: float) -> tuple[NDArray, NDArray]:
    """Return the gradients of units and gates where parameters are frozen, as `ops.units_gradient`."""
    check_units(products, r, weights)
    check_floats(products=products, r=r, weights=weights)
    H = len(weights)
    by_head = math.prod(r.shape[:-1]), H, r.shape[-1] // max(H, 1)
    da, dots = workspace.empty(r.shape, r.dtype), workspace.empty(r.shape, r.dtype)
    given = flat(products).reshape(by_head), flat(r).reshape(by_head), np.ascontiguousarray(weights)
    frozen_gradient(*given, da.reshape(by_head), dots.reshape(by_head))
    return da, scale * column_sums(dots).reshape(by_head[1:]).sum(1)
