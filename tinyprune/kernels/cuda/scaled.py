"""An array times a number, which may be in the GPU's memory: how a gradient of a loss begins.

for i: out[i] = x[i] · factor
"""

from __future__ import annotations

import numpy as np

from tinyprune.kernels.cuda.arguments import check_gradient, contiguous
from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.copies import fill
from tinyprune.kernels.cuda.jit import blocks, cuda, floats, int32, kernel

THREADS = 256


@kernel(floats, floats, int32, floats, threads=THREADS)
def times(x, factor, size, out):
    """out = x · factor[0], both flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * factor[0]


def scaled(x: DeviceArray, factor: float | DeviceArray, name: str = "dout") -> DeviceArray:
    """x · factor, a new array; the factor, called `name`, is a number or of shape () in the GPU's memory."""
    if isinstance(factor, DeviceArray):
        check_gradient(factor, (), name)
    else:
        number, factor = np.float32(factor), empty(())
        fill(1, factor, 1, number)
    out = empty(x.shape)
    times(blocks(x.size, THREADS), contiguous(x), factor, x.size, out)
    return out
