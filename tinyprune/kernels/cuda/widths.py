"""Rows of a width that is a multiple of 4, so that a kernel can read them 16 bytes at a time.

    for row, d: out[row, d] = x[row, d] if d < D else 0

One thread for each number of out.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.arguments import contiguous
from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.copies import copied
from tinyprune.kernels.cuda.jit import blocks, cuda, float32, floats, int32, kernel

THREADS = 256


@kernel(floats, int32, int32, int32, floats, threads=THREADS)
def widen(x, D, W, size, out):
    """out (…, W) of x (…, D), both flat."""
    n = cuda.grid(1)
    if n < size:
        row, d = n // W, n % W
        out[n] = x[row * D + d] if d < D else float32(0)


def wide(x: DeviceArray) -> DeviceArray:
    """`x`, contiguous, with zeros behind each row up to the next multiple of 4; no copy if there are none to add."""
    D = x.shape[-1]
    W = -(-D // 4) * 4
    x = contiguous(x)
    if D == W:
        return x
    out = empty((*x.shape[:-1], W))
    widen(blocks(out.size, THREADS), x, D, W, out.size, out)
    return out


def narrow(x: DeviceArray, D: int) -> DeviceArray:
    """The first D numbers of each row, contiguous; no copy if that is all."""
    return x if x.shape[-1] == D else copied(x[(*(x.ndim - 1) * (slice(None),), slice(D))])
