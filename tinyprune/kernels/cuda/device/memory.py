"""The GPU's memory: a pool of blocks, see `kernels.pool`, and copies to them and from them.

All kernels run in order on the default stream, so a recycled block is written only after earlier kernels have read it.
A block belongs to the pool alone, which frees it when it is cleared; at the program's end the driver does.

In the simulator a block is main memory, filled with NaN at each `take`: so a kernel that reads what was not written is
noticed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels import pool
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.jit import SIMULATED, Window

SMALLEST = 256  # bytes of a block
GARBAGE = np.int32(-1)  # as float32 a NaN


class Pool(pool.Pool):
    """A pool of blocks. A block is an address, in the simulator an int32 array."""

    most_used = 0  # largest `bytes_used` so far

    def allocate(self, size: int) -> Any:
        """Return a new block. Raises MemoryError if the GPU has no room for it."""
        return np.empty(size // 4, np.int32) if SIMULATED else driver().allocate(size)

    def release(self, block: Any) -> None:
        """Free a block."""
        if not SIMULATED:
            driver().free(block)

    def take(self, size: int) -> Any:
        """Take a block of `size` bytes, recycled if possible."""
        block = super().take(size)
        self.most_used = max(self.most_used, self.bytes_used)
        if SIMULATED:
            block[:] = GARBAGE
        return block

    def fresh(self, size: int) -> Any:
        """Allocate a block. Raises MemoryError, which says how much is in use, if the GPU has no room for it.

        Free blocks stay in the pool until there is no room: to free and to allocate stops the GPU, and the same sizes
        come back, with gates that open and close or with rare words.
        """
        try:
            return super().fresh(size)
        except MemoryError:
            more, used = size / 2**20, self.bytes_used / 2**20
            raise MemoryError(
                f"the GPU has no room for {more:.0f} MiB more beside the {used:.0f} MiB in use here"
            ) from None


POOL = Pool()


class Storage:
    """A block, as `entries` of 4 bytes, for an array and its views; it returns to the pool when the last is deleted."""

    __slots__ = ("block", "pool", "size")

    def __init__(self, entries: int) -> None:
        self.size = pool.size_class(max(4 * entries, SMALLEST))
        self.block = POOL.take(self.size)
        self.pool = POOL  # at exit, the module's names may be gone before the last array

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.pool.give(self.size, self.block)

    def pointer(self, first: int, entries: int, dtype: np.dtype) -> Any:
        """Return what a kernel gets for these entries: the address of the first, in the simulator a `Window`."""
        if SIMULATED:
            return Window(self.block.view(dtype)[first : first + entries], first)
        return self.block + 4 * first

    def write(self, first: int, values: NDArray) -> None:
        """Copy a flat array from main memory."""
        if SIMULATED:
            self.block[first : first + values.nbytes // 4] = values.view(np.int32)
        else:
            driver().write(self.block + 4 * first, values)

    def read(self, first: int, values: NDArray) -> None:
        """Copy to a flat array in main memory, after the kernels launched before have finished."""
        if SIMULATED:
            values.view(np.int32)[:] = self.block[first : first + values.nbytes // 4]
        else:
            driver().read(self.block + 4 * first, values)
