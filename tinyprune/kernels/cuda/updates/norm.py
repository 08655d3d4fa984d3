"""Squared norms: the sums of the squares of all entries. See `tinyprune.ops.norm`.

    for i: sum += x[i]²                      in float64

One block for every `EACH` entries of an array; a thread adds every `THREADS`th of these, and the threads' sums are
joined. float64 is on purpose: the square of a float32 may overflow float32. All arrays share one launch. Python adds
the blocks' sums after one copy from the GPU's memory, for which it waits.
"""

from collections.abc import Sequence

import numpy as np
from numba import float64, types

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_host
from tinyprune.kernels.cuda.device.jit import cuda, ints, kernel
from tinyprune.kernels.cuda.device.many import EACH, THREADS, division, table_of, tables
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.sums import block_sum

doubles = types.CPointer(float64)


@kernel(tables, ints, ints, ints, doubles, threads=THREADS, hot=True, float64=True)
def squares(arrays, owners, begins, sizes, sums):
    """sums[block]: squares of the block's entries, those of array owners[block], flat, from begins[block] on."""
    scratch = cuda.shared.array(THREADS, float64)
    block, thread = cuda.blockIdx.x, cuda.threadIdx.x
    begin, size = begins[block], sizes[owners[block]]
    x = arrays[owners[block]]
    total = float64(0)
    for i in range(begin + thread, min(begin + EACH, size), THREADS):
        value = float64(x[i])
        total += value * value
    total = block_sum(total, scratch)
    if thread == 0:
        sums[block] = total


def sum_squares(arrays: Sequence[DeviceArray]) -> tuple[DeviceArray, list[tuple[int, int]]]:
    """Compute the blocks' sums of all arrays; return them, in float64, and where those of each begin and end."""
    places, owners, begins, sizes = division(tuple(x.size for x in arrays))
    sums = empty(owners.size, np.float64)
    packed = [contiguous(x) for x in arrays]
    squares(owners.size, table_of(packed), owners, begins, sizes, sums)
    return sums, places


def squared_norms(arrays: Sequence[DeviceArray]) -> list[float]:
    """Compute ‖x‖² of each array, in float64: `ops.squared_norms` for float32. Waits once for the GPU."""
    check_floats(arrays=arrays)
    sums, places = sum_squares(arrays)
    values = to_host(sums)
    return [float(values[first:end].sum()) for first, end in places]


def squared_norm(x: DeviceArray) -> float:
    """Compute ‖x‖², in float64: `ops.squared_norm` for float32. Waits for the GPU."""
    check_floats(x=x)
    return squared_norms([x])[0]
