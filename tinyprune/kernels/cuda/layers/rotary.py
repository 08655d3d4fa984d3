"""Rotary positions: turn pairs of features by angles that grow with the position. See `tinyprune.ops.rotary`.

A thread for each pair. Cosines and sines are computed in main memory, in float64, and copied to the GPU's only once.
To turn the other way is to exchange the halves, and so backward is the same kernel.
"""

from functools import lru_cache

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.instructions import divided
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.rotary import check_arguments, cos_and_sin

THREADS = 256
REMEMBERED = 16  # tables, of T · Dh/2 numbers: one for training and evaluation each, and a few of text being written


@kernel(floats, floats, floats, int32, int32, int32, int32, int32, int32, floats, threads=THREADS, hot=True)
def turn(x, cos, sin, T, H, half, one, other, pairs, out):
    """out of x (B, T, H, Dh), both flat; `one` and `other` are where a head's halves begin."""
    n = cuda.grid(1)
    if n < pairs:
        head, d = divided(n, half)
        _, t = divided(divided(head, H)[0], T)
        c, s = cos[t * half + d], sin[t * half + d]
        i, j = head * 2 * half + one + d, head * 2 * half + other + d
        x1, x2 = x[i], x[j]
        out[i] = x1 * c - x2 * s
        out[j] = x2 * c + x1 * s


@lru_cache(REMEMBERED)
def tables(T: int, Dh: int, base: float, first: int) -> tuple[DeviceArray, DeviceArray]:
    """Return cosines and sines in the GPU's memory."""
    cos, sin = cos_and_sin(T, Dh, base, first, np.float32)
    return to_device(cos), to_device(sin)


def rotate(x: DeviceArray, base: float, first: int = 0, *, back: bool = False) -> DeviceArray:
    """Turn the features of every position and head, as `ops.rotate`, for float32."""
    check_floats(x=x)
    check_arguments(x, base, first)
    _, T, H, Dh = x.shape
    half, pairs = Dh // 2, x.size // 2
    one, other = (half, 0) if back else (0, half)
    out = empty(x.shape)
    turn(blocks(pairs, THREADS), contiguous(x), *tables(T, Dh, base, first), T, H, half, one, other, pairs, out)
    return out
