"""Heads: sums over those that share a key, and gradients of their networks' units. See `tinyprune.ops.repeat_heads`
and `tinyprune.ops.head_networks`.

    sum_heads        for b, s, h: out[b, s, index[h]] += x[b, s, h]
    units_gradient   for r, h, i: da[r, h, i] = weights[h] · products[r, h, i], after a ReLU where r > 0

In `sum_heads` a thread takes whole positions; sums run in the order of the heads.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel, parallel_kernel
from tinyprune.kernels.cpu.products import column_sums
from tinyprune.kernels.cpu.simd import add, lanes, load, number, store
from tinyprune.ops.head_networks import check_units
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


@loop_kernel
def sum_shared(dout, index, rows, K, Dh, dx):
    """Compute dx; dout and dx are flat."""
    for row in prange(rows):
        sum_row(number(row), dout, index, K, Dh, dx)


def sum_heads(x: NDArray, index: Sequence[int] | NDArray, K: int) -> NDArray:
    """Sum the heads that belong together, as `ops.sum_heads`; float32 or float64."""
    check_sum_heads(x, index, K)
    check_floats(x=x)
    B, S, _, Dh = x.shape
    out = workspace.empty((B, S, K, Dh), x.dtype)
    sum_shared(x.size, flat(x), np.array(index, np.int64), B * S, K, Dh, out.reshape(-1))
    return out


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
