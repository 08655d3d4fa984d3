"""Concatenate: arrays one after the other, such as memory and segment. See `tinyprune.ops.rows`.

One thread for each entry of out, and a row of blocks for each index before the axis. Memory is read in place, from the
context of the previous segment: gaps between its texts cost nothing, and a copy would move it twice.
"""

import math
from collections.abc import Sequence
from functools import reduce

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import by_rows, contiguous, copied
from tinyprune.ops.rows import check_concatenate

THREADS = 256


@kernel(floats, int32, floats, int32, int32, int32, floats, threads=THREADS, hot=True)
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
        """Join two arrays."""
        out = empty((*m.shape[:axis], m.shape[axis] + x.shape[axis], *m.shape[axis + 1 :]))
        outer = math.prod(m.shape[:axis])
        split, size = m.size // max(outer, 1), out.size // max(outer, 1)
        steps = (*by_rows(m), *by_rows(x)) if axis == 1 else (contiguous(m), split, contiguous(x), size - split)
        join_rows((blocks(size, THREADS), outer), *steps, split, size, out)
        return out

    return reduce(joined, arrays) if len(arrays) > 1 else copied(arrays[0])
