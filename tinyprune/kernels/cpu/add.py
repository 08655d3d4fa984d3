"""Add: where paths of the gradient join. See `tinyprune.ops.add`.

    for i: out[i] = a[i] + b[i]

It gains from two threads and from recycled memory, which NumPy does without: a page fault for every 4 KiB of a fresh
result. A view, such as the last rows of each sequence, is read in place.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, alike, by_rows, check_alike
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel


@kernel
def add_row(a, b, out):
    """Set out = a + b for as many entries as out has, all 1-D."""
    for i in range(out.size):
        out[i] = a[i] + b[i]


@parallel_kernel
def add_all(a, b, out):
    """Set out = a + b, all 1-D."""
    if out.size < SMALL:
        for i in range(out.size):
            out[i] = a[i] + b[i]
    else:
        for i in prange(out.size):
            out[i] = a[i] + b[i]


@parallel_kernel
def add_rows(a, a_step, b, b_step, rows, out):
    """Set out = a + b row by row; in memory, rows of a begin a_step entries apart, those of b b_step."""
    n = out.size // rows
    for row in prange(rows):
        add_row(a[row * a_step :], b[row * b_step :], out[row * n : (row + 1) * n])


def add(a: NDArray, b: NDArray) -> NDArray:
    """Return a + b, a new array. Arguments and errors as in `ops.add`; float32 or float64."""
    if not alike(a, b):
        check_alike(a=a, b=b)
    out = workspace.empty(a.shape, a.dtype)
    if a.flags.carray and b.flags.carray:
        add_all(a.ravel(), b.ravel(), out.ravel())
    elif a.size >= SMALL and (a_rows := by_rows(a)) and (b_rows := by_rows(b)):
        add_rows(*a_rows, *b_rows, len(a), out.ravel())
    else:
        np.add(a, b, out=out)  # reads any view; a copy for two threads would cost more
    return out
