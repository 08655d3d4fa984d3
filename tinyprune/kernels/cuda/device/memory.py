"""The GPU's memory, recycled, and the way in and out.

Asking the driver for memory stops the GPU; a training step asks for the same sizes again and again. So a block goes
back to a free list when the last array that looks at it is gone, and the next request of its size class gets it, as in
`kernels.cpu.workspace`. All kernels run one after the other (on the default stream): whoever gets a block writes to it
after those have read it that were launched before.

In the simulator blocks are main memory, and full of NaN when they are handed out: a kernel that reads what nobody has
written is found out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.jit import SIMULATED, Window
from tinyprune.kernels.gpu import raise_explained

SMALLEST = 64  # entries of 4 bytes
GARBAGE = np.int32(-1)  # as float32 a NaN


def size_class(entries: int) -> int:
    """`entries` rounded up to whole 64, and by at most an eighth beyond: so nearly equal sizes share their blocks."""
    step = max(SMALLEST, 1 << max(entries.bit_length() - 4, 0))
    return max(-(-entries // step) * step, SMALLEST)


class Pool:
    """Blocks of 4-byte entries by size class, and how many entries are out and how many free."""

    def __init__(self) -> None:
        self.free: dict[int, list[Any]] = {}
        self.entries_free = 0
        self.entries_used = 0
        self.most_used = 0

    def take(self, size: int) -> Any:
        """A block of `size` entries, recycled if there is one."""
        if self.free.get(size):
            block = self.free[size].pop()
            self.entries_free -= size
        else:
            block = self.fresh(size)
        self.entries_used += size
        self.most_used = max(self.most_used, self.entries_used)
        if SIMULATED:
            block[:] = GARBAGE
        return block

    def fresh(self, size: int) -> Any:
        """A new block. Raises MemoryError if the GPU has no room for it."""
        try:
            return allocate(size)
        except MemoryError:
            # What is idle goes back only now: to give memory back and to ask for it stops the GPU, and with gates that
            # open and close, or rare words, sizes come and go.
            self.clear()
            try:
                return allocate(size)
            except MemoryError:
                used = 4 * self.entries_used / 2**20
                raise MemoryError(
                    f"the GPU has no room for {4 * size / 2**20:.0f} MiB more beside the {used:.0f} MiB in use here"
                ) from None

    def give(self, size: int, block: Any) -> None:
        """Take a block back."""
        self.entries_used -= size
        self.entries_free += size
        self.free.setdefault(size, []).append(block)

    def clear(self) -> None:
        """Give all free blocks back to the driver."""
        self.free.clear()
        self.entries_free = 0


def allocate(size: int) -> Any:
    """Memory from the driver for so many entries. Raises MemoryError if there is none."""
    if SIMULATED:
        return np.empty(size, np.int32)
    try:
        return cuda.device_array(size, np.int32)
    except Exception as error:
        raise_explained(error)


POOL = Pool()


class Lease:
    """A block while arrays look at it; it goes back to the pool with the last of them.

    Args:
        entries: that are needed, of 4 bytes each.
    """

    __slots__ = ("address", "block", "give", "size")

    def __init__(self, entries: int) -> None:
        self.size = size_class(entries)
        self.block = POOL.take(self.size)
        self.give = POOL.give  # kept here, since module names may be gone before the last array
        self.address = 0 if SIMULATED else self.block.__cuda_array_interface__["data"][0]

    def __del__(self) -> None:
        if hasattr(self, "give"):
            self.give(self.size, self.block)

    def pointer(self, first: int, entries: int, dtype: np.dtype) -> Any:
        """What a kernel takes for the entries from number `first` on."""
        if SIMULATED:
            return Window(self.block[first : first + entries].view(dtype), first)
        return self.address + 4 * first

    def write(self, first: int, values: NDArray) -> None:
        """Copy a flat array from main memory."""
        values = values.view(np.int32)
        part = self.block[first : first + values.size]
        if SIMULATED:
            part[:] = values
            return
        try:
            part.copy_to_device(values)
        except Exception as error:
            raise_explained(error)

    def read(self, first: int, values: NDArray) -> None:
        """Copy to a flat array in main memory, once all that was launched before is done."""
        values = values.view(np.int32)
        part = self.block[first : first + values.size]
        if SIMULATED:
            values[:] = part
            return
        try:
            part.copy_to_host(values)
        except Exception as error:
            raise_explained(error)
