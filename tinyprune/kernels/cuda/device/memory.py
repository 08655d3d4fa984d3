"""A pool of the GPU's memory, and copies to it and from it.

Asking the driver for memory stops the GPU, and every training step needs the same sizes. So a block returns to a free
list when the last array that uses it is freed, and serves the next request of its size class, as on the CPU: see
`kernels.cpu.workspace`. All kernels run in order on the default stream, so a recycled block is written only after
earlier kernels have read it.

In the simulator a block is main memory, filled with NaN when it is taken, so that a kernel that reads what nobody has
written is noticed.
"""

from bisect import insort
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.jit import SIMULATED, Window

SMALLEST = 256  # bytes
GARBAGE = np.int32(-1)  # as float32 a NaN


class Pool(workspace.Pool):
    """The CPU's pool for blocks of the GPU's memory; also knows how many bytes were in use at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most_used = 0

    def take(self, size: int) -> Any:
        """Take a block of `size` bytes, recycled if possible."""
        block = super().take(size)
        if self.bytes_used > self.most_used:
            self.most_used = self.bytes_used
        if SIMULATED:
            block[:] = GARBAGE
        return block

    def give(self, size: int, block: Any, insort: Callable[..., None] = insort) -> None:
        """Take a block back. The one at the lowest address is taken first, so that equal steps use equal addresses, and
        their tables of addresses, see `many.table_of`, are in the GPU's memory already."""
        super().give(size, block)  # at the end
        free = self.free[size]
        if not SIMULATED and len(free) > 1 and free[-2].address < block.address:  # the simulator's have none
            insort(free, free.pop(), key=lambda block: -block.address)

    def fresh(self, size: int) -> Any:
        """Allocate a block. Raises MemoryError if the GPU has no room for it."""
        try:
            return allocate(size)
        except MemoryError:
            # Idle blocks are freed only now: freeing and allocating stop the GPU, and sizes come and go with gates that
            # open and close, or with rare words.
            POOL.clear()  # whichever pool asks: others are small
            try:
                return allocate(size)
            except MemoryError:
                more, used = size / 2**20, POOL.bytes_used / 2**20
                raise MemoryError(
                    f"the GPU has no room for {more:.0f} MiB more beside the {used:.0f} MiB in use here"
                ) from None


class Block:
    """Bytes of the GPU's memory, freed when nobody has it any more."""

    __slots__ = ("address", "gpu")

    def __init__(self, size: int) -> None:
        self.gpu = driver()
        self.address = self.gpu.allocate(size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self.gpu.free(self.address)


def allocate(size: int) -> Any:
    """Allocate bytes: a block, in the simulator an array of int32. Raises MemoryError if there is no room."""
    return np.empty(size // 4, np.int32) if SIMULATED else Block(size)


POOL = Pool()


@lru_cache(4096)
def block_size(entries: int) -> int:
    """Return the size of the block for so many entries of 4 bytes."""
    return workspace.size_class(max(4 * entries, SMALLEST))


class Lease:
    """A block of entries of 4 bytes that arrays use; it returns to the pool when the last of them is freed."""

    __slots__ = ("address", "block", "give", "size")

    def __init__(self, entries: int, pool: Pool = POOL) -> None:
        self.size = block_size(entries)
        self.block = pool.take(self.size)
        self.give = pool.give  # kept here: at exit, module names may be gone before the last array
        self.address = 0 if SIMULATED else self.block.address

    def __del__(self) -> None:
        if hasattr(self, "give"):
            self.give(self.size, self.block)

    def pointer(self, first: int, entries: int, dtype: np.dtype) -> Any:
        """Return what a kernel gets for the entries from `first` on."""
        if SIMULATED:
            return Window(self.block.view(dtype)[first : first + entries], first)
        return self.address + 4 * first

    def write(self, first: int, values: NDArray) -> None:
        """Copy a flat array from main memory."""
        if SIMULATED:
            self.block[first : first + values.nbytes // 4] = values.view(np.int32)
        else:
            driver().write(self.address + 4 * first, values)

    def read(self, first: int, values: NDArray) -> None:
        """Copy to a flat array in main memory, after the kernels launched before have finished."""
        if SIMULATED:
            values.view(np.int32)[:] = self.block[first : first + values.nbytes // 4]
        else:
            driver().read(self.address + 4 * first, values)
