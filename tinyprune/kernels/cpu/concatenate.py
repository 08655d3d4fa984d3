"""Concatenate: arrays one after the other, such as memory and segment. See `tinyprune.ops.rows`.

    for b: out[b] = [m[b]; x[b]]                    two arrays of three axes, along axis 1

That is a memory-bound copy; what it gains over NumPy is a second thread, and recycled memory without page faults. The
memory `m` is read in place, in the context of the segment before. NumPy does the others.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import FLOATS, SMALL, by_rows, check_floats
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.ops.rows import check_concatenate


@kernel
def join(m, x, split, out):
    """Set out = [m; x], `split` entries of m and the rest of x, all 1-D."""
    for i in range(split):
        out[i] = m[i]
    end = out[split:]
    for i in range(end.size):
        end[i] = x[i]


@parallel_kernel
def join_rows(m, m_step, x, x_step, rows, split, out):
    """Join row by row; in memory, rows of m begin m_step entries apart, those of x x_step."""
    n = out.size // rows
    for row in prange(rows):
        join(m[row * m_step :], x[row * x_step :], split, out[row * n : (row + 1) * n])


def concatenate(arrays: Sequence[NDArray], axis: int = 0) -> NDArray:
    """Put arrays one after the other, as `ops.concatenate`; float32 or float64."""
    check_concatenate(arrays, axis)
    first = arrays[0]
    for i, x in enumerate(arrays):
        if x.dtype != first.dtype or x.dtype not in FLOATS:
            check_floats(**{"arrays[0]": first, f"arrays[{i}]": x})
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    out = workspace.empty(tuple(shape), first.dtype)
    if len(arrays) == 2 and first.ndim == 3 and axis == 1 and out.size >= SMALL:
        m, x = arrays
        if (m_rows := by_rows(m)) and (x_rows := by_rows(x)):
            join_rows(*m_rows, *x_rows, len(x), m.shape[1] * m.shape[2], out.ravel())
            return out
    return np.concatenate(arrays, axis, out=out)
