"""Add: where two paths of the gradient join. See `tinyprune.ops.add`.

    for i: out[i] = a[i] + b[i]

Two threads and recycled memory: 21 µs for (16, 128, 128) in float32, NumPy 32, and a page fault for every 4 KiB of its
result where that is fresh.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, check_floats
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.ops.add import check_same_shape


@parallel_kernel
def add_all(a, b, out):
    """out = a + b, all 1-D."""
    if out.size < SMALL:
        for i in range(out.size):
            out[i] = a[i] + b[i]
    else:
        for i in prange(out.size):
            out[i] = a[i] + b[i]


def add(a: NDArray, b: NDArray) -> NDArray:
    """a + b, a new array. Arguments and errors as in `ops.add`; float32 or float64."""
    check_same_shape(a=a, b=b)
    check_floats(a=a, b=b)
    out = workspace.empty(a.shape, a.dtype)
    if a.flags.carray and b.flags.carray:
        add_all(a.reshape(-1), b.reshape(-1), out.reshape(-1))
    else:
        np.add(a, b, out=out)  # reads views where they lie; a copy first would cost more than a second thread gains
    return out
