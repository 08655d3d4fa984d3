"""Sums of the gradients of query heads that share a key or value. See `tinyprune.ops.repeat_heads`.

A thread for each entry of the result goes through the heads: sums run in their order, and no two threads write to one
place.
"""

from collections.abc import Sequence

from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.instructions import divided
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.layers.slices import on_device
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.repeat_heads import check_sum_heads

THREADS = 256


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS, hot=True)
def sum_shared(dout, index, H, K, Dh, size, dx):
    """dx (rows, K, Dh) from dout (rows, H, Dh), both flat: the sums over the heads h with index[h] = k."""
    i = cuda.grid(1)
    if i < size:
        rest, d = divided(i, Dh)
        row, k = divided(rest, K)
        total = float32(0)
        for h in range(H):
            if index[h] == k:
                total += dout[(row * H + h) * Dh + d]
        dx[i] = total


def sum_heads(x: DeviceArray, index: Sequence[int] | NDArray, K: int) -> DeviceArray:
    """Sum the heads that belong together, as `ops.sum_heads`, for float32."""
    check_floats(x=x)
    check_sum_heads(x, index, K)
    B, S, H, Dh = x.shape
    out = empty((B, S, K, Dh))
    places = on_device(tuple(map(int, index)))
    sum_shared(blocks(out.size, THREADS), contiguous(x), places, H, K, Dh, out.size, out)
    return out
