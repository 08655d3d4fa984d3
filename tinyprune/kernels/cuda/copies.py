"""Copies of views: entries that lie apart are brought together.

    for i0, i1, i2, i3: out[i0, i1, i2, i3] = x[i0·s0 + i1·s1 + i2·s2 + i3·s3]

One thread for each entry of out, neighbours side by side. It reads in whatever order x lies, so that a transposed
matrix costs more than a view of rows; kernels that can read views as they lie do without it.
"""

from __future__ import annotations

import numpy as np

from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.jit import blocks, cuda, float32, floats, int32, kernel

THREADS = 256
AXES = 4


@kernel(floats, *3 * (int32,), *4 * (int32,), int32, floats, threads=THREADS)
def gather(x, n1, n2, n3, s0, s1, s2, s3, size, out):
    """out, flat, of shape (…, n1, n2, n3): from x with these strides."""
    i = cuda.grid(1)
    if i < size:
        rest, i3 = i // n3, i % n3
        rest, i2 = rest // n2, rest % n2
        i0, i1 = rest // n1, rest % n1
        out[i] = x[i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3]


@kernel(floats, int32, float32, threads=THREADS)
def fill(x, size, value):
    """x[i] = value, flat."""
    i = cuda.grid(1)
    if i < size:
        x[i] = value


def copied(x: DeviceArray) -> DeviceArray:
    """A copy of a view of up to 4 axes, in C order without gaps."""
    out = empty(x.shape)
    missing = AXES - x.ndim
    _, *n = (*missing * (1,), *x.shape)
    strides = (*missing * (0,), *x.strides)
    gather(blocks(x.size, THREADS), x, *n, *strides, x.size, out)
    return out


def zeros(shape: int | tuple[int, ...]) -> DeviceArray:
    """An array of float32 zeros."""
    x = empty(shape)
    fill(blocks(x.size, THREADS), x, x.size, np.float32(0))
    return x
