"""Sums of arrays, and arrays one after the other, such as memory and segment. See `tinyprune.ops.add` and `rows`.

    add           out[i] = a[i] + b[i]
    concatenate   out[b] = m[b] followed by x[b], two arrays at a time

A thread for each entry of the result. Views with gaps between texts, as memory is of the previous segment's context,
are read without a copy.
"""

import math
from collections.abc import Sequence
from functools import reduce

from tinyprune.kernels.cuda.arguments import THREADS, by_rows, check_alike, check_floats, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.ops.rows import check_concatenate


@kernel(floats, int32, floats, int32, int32, floats, threads=THREADS)
def add_all(a, a_step, b, b_step, size, out):
    """Compute out (rows, size) = a + b, where rows of a lie a_step entries apart, and those of b b_step."""
    row, i = cuda.blockIdx.y, cuda.grid(1)
    if i < size:
        out[row * size + i] = a[row * a_step + i] + b[row * b_step + i]


def add(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """Return a + b, as `ops.add`, for float32. Views of three axes are read in place."""
    check_alike(a=a, b=b)
    out = empty(a.shape)
    if a.ndim == 3 and not (a.contiguous and b.contiguous):
        size = out.size // max(len(a), 1)
        add_all((blocks(size, THREADS), len(a)), *by_rows(a), *by_rows(b), size, out)
    else:
        add_all(blocks(out.size, THREADS), contiguous(a), 0, contiguous(b), 0, out.size, out)
    return out


@kernel(floats, int32, floats, int32, int32, int32, floats, threads=THREADS)
def join_rows(m, m_step, x, x_step, split, size, out):
    """Set each row of out (B, size) to `split` entries of m and the rest of x, whose rows lie m_step, x_step apart."""
    b, i = cuda.blockIdx.y, cuda.grid(1)
    if i < split:
        out[b * size + i] = m[b * m_step + i]
    elif i < size:
        out[b * size + i] = x[b * x_step + i - split]


def concatenate(arrays: Sequence[DeviceArray], axis: int = 0) -> DeviceArray:
    """Put arrays one after the other, as `ops.concatenate`, for float32."""
    check_concatenate(arrays, axis)
    check_floats(arrays=arrays)
    axis %= arrays[0].ndim

    def joined(m: DeviceArray, x: DeviceArray) -> DeviceArray:
        """Join two arrays: as rows of all entries from the axis on."""
        out = empty((*m.shape[:axis], m.shape[axis] + x.shape[axis], *m.shape[axis + 1 :]))
        outer = math.prod(m.shape[:axis])
        split, size = m.size // max(outer, 1), out.size // max(outer, 1)
        steps = (*by_rows(m), *by_rows(x)) if axis == 1 else (contiguous(m), split, contiguous(x), size - split)
        join_rows((blocks(size, THREADS), outer), *steps, split, size, out)
        return out

    return reduce(joined, arrays) if len(arrays) > 1 else copied(arrays[0])
