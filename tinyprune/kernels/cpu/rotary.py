"""Rotary positions: turn pairs of features by angles that grow with the position. See `tinyprune.ops.rotary`.

    for b, t, h, d < Dh/2: out[d] = x[d] · cos[t, d] − x[d + Dh/2] · sin[t, d]
                           out[d + Dh/2] = x[d + Dh/2] · cos[t, d] + x[d] · sin[t, d]

One pass; the textbook makes six arrays of half the size and joins two of them. Cosines and sines are remembered, since
all layers ask for the same ones. To turn the other way is to exchange the halves, and so backward is the same kernel.
"""

from functools import lru_cache

import numpy as np
from numba import int64, prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel
from tinyprune.kernels.cpu.simd import add, lanes, load, multiply, store, subtract
from tinyprune.ops.rotary import Base, check_arguments, cos_and_sin

REMEMBERED = 16  # tables, of T · Dh/2 numbers: one for training and evaluation each, and a few of text being written


@kernel
def turn_row(x, at, H, cos, sin, table_at, half, one, other, out):
    """Turn the H heads of a position, which begin at `at`; `one` and `other` are where a head's halves begin."""
    L = lanes(x)
    whole = half - half % L
    for d in range(0, whole, L):
        c, s = load(cos, table_at + d), load(sin, table_at + d)
        for h in range(H):
            i, j = at + 2 * half * h + one + d, at + 2 * half * h + other + d
            x1, x2 = load(x, i), load(x, j)
            store(out, i, subtract(multiply(x1, c), multiply(x2, s)))
            store(out, j, add(multiply(x2, c), multiply(x1, s)))
    for d in range(whole, half):
        c, s = cos[table_at + d], sin[table_at + d]
        for h in range(H):
            i, j = at + 2 * half * h + one + d, at + 2 * half * h + other + d
            x1, x2 = x[i], x[j]
            out[i] = x1 * c - x2 * s
            out[j] = x2 * c + x1 * s


@loop_kernel
def turn(x, rows, T, H, cos, sin, half, one, other, out):
    """Turn all `rows`, of which each T in a row are a text. All arrays are flat."""
    for i in prange(rows):
        row = int64(i)
        turn_row(x, row * H * 2 * half, H, cos, sin, row % T * half, half, one, other, out)


@lru_cache(REMEMBERED)
def tables(T: int, Dh: int, base: Base, first: int, dtype: np.dtype) -> tuple[NDArray, NDArray]:
    """Return cosines and sines, flat. Do not modify them."""
    cos, sin = cos_and_sin(T, Dh, base, first, dtype)
    return cos.ravel(), sin.ravel()


def rotate(x: NDArray, base: Base, first: int = 0, *, back: bool = False) -> NDArray:
    """Turn the features of every position and head, as `ops.rotate`; float32 or float64."""
    check_arguments(x, base, first)
    check_floats(x=x)
    B, T, H, Dh = x.shape
    half = Dh // 2
    cos, sin = tables(T, Dh, base, first, x.dtype)
    out = workspace.empty(x.shape, x.dtype)
    turn(x.size, flat(x), B * T, T, H, cos, sin, half, half if back else 0, 0 if back else half, out.reshape(-1))
    return out
