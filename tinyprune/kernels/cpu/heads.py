"""Gradients of the units of heads' networks, where parameters are frozen. See `tinyprune.ops.head_networks`.

    for r, h, i: da[r, h, i] = weights[h] · products[r, h, i], after a ReLU where r > 0

One pass in place of NumPy's five: a fourth of the time at preset `tiny`.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.products import column_sums
from tinyprune.ops.head_networks import check_units


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
