"""Sums of arrays, and arrays one after the other, such as memory and segment. See `tinyprune.ops.add` and `rows`.

    add           for i: out[i] = a[i] + b[i]
    concatenate   for b: out[b] = [m[b]; x[b]]           two arrays of three axes, along axis 1; NumPy does the others

They gain from two threads and from recycled memory, which NumPy does without: a page fault for every 4 KiB of a fresh
result. A view, such as the last rows of each sequence or the memory `m`, is read in place.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import by_rows, check_alike, check_floats
from tinyprune.kernels.cpu.jit import SMALL, loop_kernel, parallel_kernel
from tinyprune.ops.rows import check_concatenate


@loop_kernel
def add_all(a, b, out):
    """Set out = a + b, all 1-D."""
    for i in prange(out.size):
        out[i] = a[i] + b[i]


@parallel_kernel
def add_rows(a, a_step, b, b_step, rows, out):
    """Set out = a + b row by row; in memory, rows of a begin a_step entries apart, those of b b_step."""
    n = out.size // rows
    for row in prange(rows):
        x, y, total = a[row * a_step :], b[row * b_step :], out[row * n : (row + 1) * n]
        for i in range(total.size):
            total[i] = x[i] + y[i]


def add(a: NDArray, b: NDArray) -> NDArray:
    """Return a + b, a new array. Arguments and errors as in `ops.add`; float32 or float64."""
    check_alike(a=a, b=b)
    out = workspace.empty(a.shape, a.dtype)
    if a.flags.carray and b.flags.carray:
        add_all(a.size, a.ravel(), b.ravel(), out.ravel())
    elif a.size >= SMALL and (a_rows := by_rows(a)) and (b_rows := by_rows(b)):
        add_rows(*a_rows, *b_rows, len(a), out.ravel())
    else:
        np.add(a, b, out=out)  # reads any view; a copy for two threads would cost more
    return out


@parallel_kernel
def join_rows(m, m_step, x, x_step, rows, split, out):
    """Set out = [m; x] row by row, `split` entries of m and the rest of x, whose rows begin m_step and x_step apart."""
    n = out.size // rows
    for row in prange(rows):
        before, after = m[row * m_step :], x[row * x_step :]
        begin, end = out[row * n : row * n + split], out[row * n + split : (row + 1) * n]
        for i in range(begin.size):
            begin[i] = before[i]
        for i in range(end.size):
            end[i] = after[i]


def concatenate(arrays: Sequence[NDArray], axis: int = 0) -> NDArray:
    """Put arrays one after the other, as `ops.concatenate`; float32 or float64."""
    check_concatenate(arrays, axis)
    check_floats(**{f"arrays[{i}]": x for i, x in enumerate(arrays)})
    first = arrays[0]
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    out = workspace.empty(tuple(shape), first.dtype)
    if len(arrays) == 2 and first.ndim == 3 and axis == 1 and out.size >= SMALL:
        m, x = arrays
        if (m_rows := by_rows(m)) and (x_rows := by_rows(x)):
            join_rows(*m_rows, *x_rows, len(x), m.shape[1] * m.shape[2], out.ravel())
            return out
    return np.concatenate(arrays, axis, out=out)
