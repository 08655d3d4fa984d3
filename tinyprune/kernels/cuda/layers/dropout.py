"""Dropout: set a random share of the entries to zero and scale the others up. See `tinyprune.ops.dropout`.

One thread for each entry. The mask is never stored: some fifteen instructions recompute it for an entry, in forward and
again in backward, which is faster than reading it from memory.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.masks import DROPOUT, Dropout, keep_factor

THREADS = 256


@kernel(floats, DROPOUT, int32, floats, threads=THREADS, hot=True)
def drop(x, dropout, size, out):
    """out[i] = x[i] · factor if kept, else x[i] · 0: as in NumPy, NaN and inf become NaN."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * keep_factor(i, dropout)


def apply(x: DeviceArray, mask: Dropout) -> DeviceArray:
    """Return x · keep / (1 − rate)."""
    out = empty(x.shape)
    drop(blocks(x.size, THREADS), contiguous(x), mask, x.size, out)
    return out


def dropout_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Return the gradient of dropout; the mask is recomputed."""
    mask, shape = cache
    check_gradient(dout, shape)
    # out = x * keep / (1 - rate)
    return dout if mask is None else apply(dout, mask)
