"""Dropout: its mask in kernels, and of what is added to the residual stream. See `tinyprune.ops.dropout`, `residual`.

Neither y after dropout nor the mask is stored. About fifteen instructions compute the mask of an entry, in forward and
again in backward, which is faster than reading it from memory.
"""

import numpy as np
from numba import types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import THREADS, check_alike, check_gradient, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel, uint32
from tinyprune.kernels.cuda.joins import add
from tinyprune.ops.dropout import check_rate

DROPOUT = types.NamedTuple((float32, uint32, uint32, uint32), formulas.Dropout)
KEEP_ALL = formulas.draw_mask(0.0, None)

kept = device(formulas.kept)


@device
def keep_factor(i, dropout):
    """Return what entry i is multiplied by: the factor, or 0 if it is dropped."""
    return dropout.factor if kept(i, dropout.key0, dropout.key1, dropout.limit) else float32(0)


@kernel(floats, floats, DROPOUT, int32, floats, threads=THREADS)
def add_dropped(x, y, dropout, size, out):
    """Compute out = x + y · (factor where kept, else 0), all flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] + y[i] * keep_factor(i, dropout)


@kernel(floats, DROPOUT, int32, floats, threads=THREADS)
def drop(x, dropout, size, out):
    """Set out[i] to x[i] · factor if kept, else to x[i] · 0: as in NumPy, NaN and inf become NaN."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * keep_factor(i, dropout)


def residual_forward(
    x: DeviceArray, y: DeviceArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[DeviceArray, tuple]:
    """Compute x + dropout(y): `ops.residual_forward` for float32."""
    check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    if rng is None or dropout == 0:
        return add(x, y), (None, x.shape)
    mask, out = formulas.draw_mask(dropout, rng), empty(x.shape)
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
