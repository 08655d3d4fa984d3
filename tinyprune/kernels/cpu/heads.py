"""Heads: what some own of a parameter, sums over those that share a key, and what their networks need beside products.
See `tinyprune.ops.slices`, `repeat_heads`, `rows` and `head_networks`.

    take_slices      for o, i:    part[o, i] = x[o, index[i]]       x (outer, n, inner), a view: inner is a head's piece
    put_slices       for o, h:    x[o, h] = part[o, i] if h = index[i] else 0
    sum_heads        for b, s, h: out[b, s, index[h]] += x[b, s, h]
    multiply_rows    for r, i:    out[r, i] = factors[r] · x[r, i]
    row_dots         for r:       out[r] = factor · Σ_i x[r, i] · y[r, i]
    units_gradient   for r, h, i: da[r, h, i] = weights[h] · products[r, h, i] where r > 0

`put_slices` writes everything once, where the textbook writes zeros first, and neither lists the indices of all
entries. Copies use vector instructions, and heads are the inner loop: of a loop along so short a run LLVM makes a call
of memcpy, which takes longer. A training step of a model with closed heads does both for ten arrays in each layer.

In `sum_heads` a thread takes whole positions; sums run in the order of the heads. Gates multiply the values of head
networks, which are few, and not the units, one for each position. NumPy multiplies them, into recycled memory.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_alike, check_floats, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel, parallel_kernel
from tinyprune.kernels.cpu.products import column_sums
from tinyprune.kernels.cpu.simd import add, broadcast, lanes, load, number, store
from tinyprune.ops.head_networks import check_units
from tinyprune.ops.repeat_heads import check_sum_heads
from tinyprune.ops.rows import check_factors, check_row_dots
from tinyprune.ops.slices import check_part, entries, slice_count


@kernel
def copy(x, index, n, inner, out):
    """Set out[o, i] = x[o, index[i]], or 0 where the index is −1; x (outer, n, inner) and out are flat."""
    L = lanes(x)
    whole = inner - inner % L
    zero = broadcast(x, 0)
    at = 0
    for to in range(0, out.size, max(index.size * inner, 1)):
        for d in range(0, whole, L):
            for i in range(index.size):
                value = zero if index[i] < 0 else load(x, at + index[i] * inner + d)
                store(out, to + i * inner + d, value)
        for d in range(whole, inner):
            for i in range(index.size):
                out[to + i * inner + d] = 0 if index[i] < 0 else x[at + index[i] * inner + d]
        at += n * inner


@kernel
def take(x, index, n, inner, part):
    """Copy slices of x (outer, n, inner) to part (outer, len(index), inner), flat; False if an index is invalid."""
    for h in index:
        if not 0 <= h < n:
            return False
    copy(x, index, n, inner, part)
    return True


@kernel
def put(part, index, n, inner, x):
    """Copy part (outer, len(index), inner) to slices of x (outer, n, inner), flat; False if an index is invalid."""
    place = np.full(n, -1, np.int64)
    for i in range(index.size):
        if not 0 <= index[i] < n:
            return False
        place[index[i]] = i
    copy(part, place, index.size, inner, x)
    return True


def take_slices(x: NDArray, index: Sequence[int] | NDArray, axis: int, width: int = 1) -> NDArray:
    """Take the slices `index`, in this order, as `ops.take_slices`; float32 or float64."""
    check_floats(x=x)
    n = slice_count("x", x, axis, width)
    places = np.ascontiguousarray(index, np.int64)
    part = workspace.empty((*x.shape[:axis], len(places) * width, *x.shape[axis + 1 :]), x.dtype)
    if not take(flat(x), places, n, width * math.prod(x.shape[axis + 1 :]), part.reshape(-1)):
        entries(index, n, width)  # says what is wrong
    return part


def put_slices(part: NDArray, index: Sequence[int] | NDArray, axis: int, n: int, width: int = 1) -> NDArray:
    """Put slices into zeros, as `ops.put_slices`; float32 or float64."""
    check_floats(part=part)
    check_part(part, index, axis, width)
    places = np.ascontiguousarray(index, np.int64)
    x = workspace.empty((*part.shape[:axis], n * width, *part.shape[axis + 1 :]), part.dtype)
    if not put(flat(part), places, n, width * math.prod(part.shape[axis + 1 :]), x.reshape(-1)):
        entries(index, n, width)  # says what is wrong
    return x


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
