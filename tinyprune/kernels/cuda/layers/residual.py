"""Residual connection: x plus y after dropout. See `tinyprune.ops.residual`.

One thread for each entry, in one pass: y after dropout is not stored, and neither is the mask. Some fifteen
instructions compute it for an entry, in forward and again in backward, which is faster than reading it from memory.
"""

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.layers.add import add
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.masks import DROPOUT, draw_mask, keep_factor
from tinyprune.ops.dropout import check_rate

THREADS = 256


@kernel(floats, floats, DROPOUT, int32, floats, threads=THREADS, hot=True)
def add_dropped(x, y, dropout, size, out):
    """out = x + y · (factor where kept, else 0), all flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] + y[i] * keep_factor(i, dropout)


@kernel(floats, DROPOUT, int32, floats, threads=THREADS, hot=True)
def drop(x, dropout, size, out):
    """out[i] = x[i] · factor if kept, else x[i] · 0: as in NumPy, NaN and inf become NaN."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * keep_factor(i, dropout)


def residual_forward(
    x: DeviceArray, y: DeviceArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[DeviceArray, tuple]:
    """x + dropout(y): `ops.residual_forward` for float32."""
    check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    if rng is None or dropout == 0:
        return add(x, y), (None, x.shape)
    mask, out = draw_mask(dropout, rng), empty(x.shape)
    add_dropped(blocks(x.size, THREADS), contiguous(x), contiguous(y), mask, x.size, out)
    return out, (mask, x.shape)


def residual_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `residual_forward`, as `ops.residual_backward`; that of x is `dout` itself."""
    mask, shape = cache
    check_gradient(dout, shape)
    if mask is None:
        return dout, dout
    dy = empty(shape)
    drop(blocks(dy.size, THREADS), contiguous(dout), mask, dy.size, dy)
    return dout, dy
