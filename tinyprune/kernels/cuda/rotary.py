"""Rotary positions: a thread for each pair of features. See `tinyprune.ops.rotary`.

Cosines and sines are computed in main memory, in float64, and copied to the GPU's only once. A head is rotated back by
the same kernel with its halves exchanged: cos is the same for −angle, and sin changes its sign.
"""

from functools import lru_cache

import numpy as np

from tinyprune.kernels.cuda.arguments import THREADS, check_floats, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.instructions import divmod32
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.ops import rotary

REMEMBERED = 16  # tables of T · Dh / 2 numbers: for training, for evaluation, and a few for generation


@kernel(floats, floats, floats, int32, int32, int32, int32, int32, int32, floats, threads=THREADS)
def rotate_pairs(x, cos, sin, T, H, half, first, second, pairs, out):
    """Rotate pairs of x (B, T, H, Dh), flat: entry d from `first` on in a head, and entry d from `second` on."""
    n = cuda.grid(1)
    if n < pairs:
        head, d = divmod32(n, half)
        _, t = divmod32(divmod32(head, H)[0], T)
        c, s = cos[t * half + d], sin[t * half + d]
        i, j = head * 2 * half + first + d, head * 2 * half + second + d
        x1, x2 = x[i], x[j]
        out[i] = x1 * c - x2 * s
        out[j] = x2 * c + x1 * s


@lru_cache(REMEMBERED)
def tables(T: int, Dh: int, base: rotary.Base, first: int) -> list[DeviceArray]:
    """Return cosines and sines in the GPU's memory."""
    return [to_device(table) for table in rotary.cos_and_sin(T, Dh, base, first, np.float32)]


def rotate(x: DeviceArray, base: rotary.Base, first: int = 0, *, back: bool = False) -> DeviceArray:
    """Turn the features of every position and head, as `ops.rotate`, for float32."""
    check_floats(x=x)
    rotary.check_arguments(x, base, first)
    _, T, H, Dh = x.shape
    half, pairs = Dh // 2, x.size // 2
    halves = (half, 0) if back else (0, half)
    out = empty(x.shape)
    rotate_pairs(blocks(pairs, THREADS), contiguous(x), *tables(T, Dh, base, first), T, H, half, *halves, pairs, out)
    return out
