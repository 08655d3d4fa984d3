"""Work on many arrays in one launch: a table of their addresses, and which block works on what.

    @kernel(tables, …)
    def each(arrays, …):
        x = arrays[n]                a pointer to the first entry of array n

Launching a kernel takes Python longer than a small array takes the GPU, and a model has hundreds of parameters.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numba import types

from tinyprune.kernels.cuda.device.array import DeviceArray, to_device
from tinyprune.kernels.cuda.device.jit import SIMULATED, blocks, floats
from tinyprune.kernels.cuda.device.memory import Lease

THREADS = 256
EACH = 32 * THREADS  # entries of one array that a block works on
tables = types.CPointer(floats)


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
