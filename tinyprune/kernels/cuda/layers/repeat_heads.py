"""Repeat heads: copies of the keys or values that several query heads share. See `tinyprune.ops.repeat_heads`.

Forward takes heads as `take_slices` does. Backward has a thread for each entry of dx, which goes through the heads:
sums run in their order, and no two threads write to one place.
"""

from collections.abc import Sequence

from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel, uint32
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.pruning.slices import on_device, picked
from tinyprune.ops.repeat_heads import check_arguments

THREADS = 256


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS, hot=True)
def sum_shared(dout, index, H, K, Dh, size, dx):
    """dx (rows, K, Dh) from dout (rows, H, Dh), both flat: the sums over the heads h with index[h] = k."""
    i = cuda.grid(1)
    if i < size:
        # unsigned, 32 bits: Numba would divide in 64 bits, which takes about four times as long
        rest, d = int32(uint32(i) // uint32(Dh)), int32(uint32(i) % uint32(Dh))
        row, k = int32(uint32(rest) // uint32(K)), int32(uint32(rest) % uint32(K))
        total = float32(0)
        for h in range(H):
            if index[h] == k:
                total += dout[(row * H + h) * Dh + d]
        dx[i] = total


def repeat_heads_forward(x: DeviceArray, index: Sequence[int] | NDArray) -> tuple[DeviceArray, tuple]:
    """Copy the head `index[h]` of `x` to head h: `ops.repeat_heads_forward` for float32."""
    check_floats(x=x)
    check_arguments(x, index)
    places = tuple(map(int, index))
    return picked(x, places, 2, x.shape[2], 1), (places, x.shape)


def repeat_heads_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `repeat_heads_forward` with respect to `x`, as `ops.repeat_heads_backward`."""
    places, shape = cache
    B, S, K, Dh = shape
    H = len(places)
    check_gradient(dout, (B, S, H, Dh))
    dx = empty(shape)
    # out[:, :, h] = x[:, :, index[h]]
    sum_shared(blocks(dx.size, THREADS), contiguous(dout), on_device(places), H, K, Dh, dx.size, dx)
    return dx
