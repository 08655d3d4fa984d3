"""Squared norms: the sums of the squares of all entries. See `tinyprune.ops.norm` and `tinyprune.ops.clipping`.

    for i: sum += x[i]²                      in float64

One block for every `EACH` entries of an array; a thread adds every `THREADS`th of these, and the threads' sums are
joined. float64 is on purpose: the square of a float32 may overflow float32. All arrays share one launch. For a norm
alone, Python adds the blocks' sums after one copy from the GPU's memory, for which it waits. For clipping one more
block adds them, and norm and factor stay in the GPU's memory, where the update reads the factor.

Launching a kernel takes Python longer than a small array takes the GPU, and a model has hundreds of parameters. So one
launch has many arrays, by a table of their addresses, and tables of which block works on what.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numba import float64, types

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import SIMULATED, blocks, cuda, device, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.device.memory import Lease
from tinyprune.kernels.cuda.parts.arguments import check_floats, contiguous
from tinyprune.kernels.cuda.parts.sums import block_sum

THREADS = 256
EACH = 32 * THREADS  # entries of one array that a block works on
doubles, tables = types.CPointer(float64), types.CPointer(floats)


@kernel(tables, ints, ints, ints, doubles, threads=THREADS, hot=True, float64=True)
def squares(arrays, owners, begins, sizes, sums):
    """Compute sums[block], of squares of the block's entries: of array owners[block], flat, from begins[block] on."""
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


@device
def two_sums(sums, middle, end, scratch):
    """Return the sums of the entries before `middle` and of those from there to `end`, to all threads of one block."""
    first, second = float64(0), float64(0)
    for i in range(cuda.threadIdx.x, middle, THREADS):
        first += sums[i]
    for i in range(middle + cuda.threadIdx.x, end, THREADS):
        second += sums[i]
    return block_sum(first, scratch), block_sum(second, scratch)


@kernel(doubles, int32, int32, float64, doubles, floats, threads=THREADS, float64=True)
def limit(sums, of_grads, of_all, max_norm, norm, factor):
    """Compute norm[0] and factor[0] of clipping from the blocks' sums: of gradients, then of losses. One block."""
    total, others = two_sums(sums, of_grads, of_all, cuda.shared.array(THREADS, float64))
    if cuda.threadIdx.x == 0:
        length = math.sqrt(total)
        norm[0] = length
        if not math.isfinite(total + others + max_norm):
            factor[0] = math.nan
        elif 0 < max_norm < length:
            factor[0] = max_norm / length
        else:
            factor[0] = float32(1)


@lru_cache(1024)
def on_device(pointers: tuple[int, ...]) -> DeviceArray:
    """Copy pointers to the GPU's memory; from step to step arrays, and so their tables, stay where they are."""
    numbers = np.array(pointers, np.uint64).view(np.int32)
    table = DeviceArray(Lease(numbers.size, apart=True), 0, numbers.shape, (1,), numbers.dtype)
    table.lease.write(0, numbers)
    return table


def table_of(arrays: Sequence[DeviceArray]) -> DeviceArray | tuple[Any, ...]:
    """Return an argument of type `tables`: contiguous arrays, which have to be kept until the kernel is launched."""
    pointers = tuple(x.pointer for x in arrays)
    return pointers if SIMULATED else on_device(pointers)


@lru_cache(256)
def division(sizes: tuple[int, ...]) -> tuple[list[tuple[int, int]], DeviceArray, DeviceArray, DeviceArray]:
    """Share out arrays of these sizes to blocks.

    Returns:
        places: for each array, its first block and the first one of the next array.
        owners, begins: for each block, its array and the entry that it begins with.
        sizes: on the device.
    """
    counts = [blocks(size, EACH) for size in sizes]
    owners = np.repeat(np.arange(len(sizes)), counts)
    begins = np.concatenate([np.arange(count) * EACH for count in counts]) if counts else owners
    places = list(pairwise(accumulate(counts, initial=0)))
    return places, *(to_device(np.asarray(numbers, np.int32)) for numbers in (owners, begins, sizes))


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


def clipping(
    grads: Sequence[DeviceArray], losses: Sequence[float | DeviceArray], *, max_norm: float
) -> tuple[DeviceArray, DeviceArray]:
    """Compute the joint norm, in float64, and the clipping factor: `ops.clipping` for float32. Waits for nothing.

    Losses are numbers, or arrays of shape () in the GPU's memory.
    """
    check_floats(grads=grads)
    there = [loss for loss in losses if isinstance(loss, DeviceArray)]
    fine = all(math.isfinite(loss) for loss in losses if not isinstance(loss, DeviceArray))
    sums, places = sum_squares([*grads, *there])
    norm, factor = empty((), np.float64), empty(())
    of_grads = places[len(grads)][0] if there else sums.size
    limit(1, sums, of_grads, sums.size, max_norm if fine else math.nan, norm, factor)
    return norm, factor
