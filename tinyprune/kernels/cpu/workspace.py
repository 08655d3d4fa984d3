"""Memory for results and scratch, recycled.

Fresh memory from the system costs a page fault for every 4 KiB, more than the arithmetic on a small array; recently
used memory is mapped and often still in the cache. So a block returns to the pool, see `kernels.pool`, when the last
array using it is freed (nothing is counted by hand). Blocks start on a cache line (64 bytes), so that no vector load
straddles two.
"""

import math
import mmap
from collections.abc import Callable
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tinyprune.kernels import pool
from tinyprune.kernels.pool import LINE, size_class

SMALL = 4096  # bytes; below it NumPy's own allocator is as good
MAPPED = range(1 << 19, 1 << 22)  # bytes of blocks that the C library would keep; larger ones NumPy puts on huge pages


class Buffer(np.ndarray):
    """A block of bytes whose first cache line begins at byte `start`.

    It has its own type because the base of a view of a view is otherwise the innermost plain array, past the `Owner`.
    """

    __slots__ = ("start",)

    def __new__(cls, size: int) -> Self:
        """Allocate `size` bytes that start on a cache line."""
        block = super().__new__(cls, size + LINE, np.uint8, mmap.mmap(-1, size + LINE) if size in MAPPED else None)
        block.start = -block.ctypes.data % LINE
        return block


class ArrayPool(pool.Pool):
    """A pool of such blocks."""

    def allocate(self, size: int) -> Buffer:
        """Allocate a block."""
        # Shapes have changed, for example because heads were removed: give idle blocks back to the system.
        if self.bytes_free > self.bytes_used:
            self.clear()
        return Buffer(size)


POOL = ArrayPool()


class Owner(np.ndarray):
    """The `base` of the arrays that use a block; it returns the block to the pool when the last of them is freed."""

    __slots__ = ()

    def __del__(self, give: Callable[[int, Buffer], None] = POOL.give, line: int = LINE) -> None:
        # these are default arguments because at exit module names may be gone before the last array is
        give(self.base.size - line, self.base)


@lru_cache(4096)
def block_size(shape: int | tuple[int, ...], dtype: DTypeLike) -> int:
    """Return the size of the block for such an array in bytes, or 0 if it is too small for one."""
    nbytes = (shape if isinstance(shape, int) else math.prod(shape)) * np.dtype(dtype).itemsize
    return size_class(nbytes) if nbytes >= SMALL else 0


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Return an uninitialised array, like `np.empty`, in recycled memory that starts on a cache line.

    Args:
        shape: of the array.
        dtype: of plain numbers, no objects.
    """
    size = block_size(shape, dtype)
    if not size:
        return np.empty(shape, dtype)
    block = POOL.take(size)
    return Owner(shape, dtype, block, block.start).view(np.ndarray)
