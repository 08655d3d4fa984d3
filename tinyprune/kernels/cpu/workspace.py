"""Memory for results and scratch, recycled.

A training step asks for arrays of the same sizes again and again. Fresh memory from the system costs a page fault for
every 4 KiB, more than the arithmetic on a small array; recently used memory is mapped and often still in the cache. So
a block returns to the pool when the last array using it is freed (nothing is counted by hand), and the next request of
its size class gets it. Blocks start on a cache line (64 bytes), so that no vector load straddles two.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64  # bytes in a cache line
SMALL = 4096  # bytes; below it NumPy's own allocator is as good


class Block(np.ndarray):
    """A block of bytes whose first cache line begins at byte `start`.

    It has its own type because the base of a view of a view is otherwise the innermost plain array, past the lease.
    """

    __slots__ = ("start",)

    def __new__(cls, size: int) -> Self:
        """Allocate `size` bytes that start on a cache line."""
        block = super().__new__(cls, size + LINE, np.uint8)
        block.start = -block.ctypes.data % LINE
        return block


class Pool:
    """Free blocks by size class, and how many bytes are in use and free."""

    def __init__(self) -> None:
        self.free: dict[int, list[Block]] = {}
        self.bytes_free = 0
        self.bytes_used = 0

    def take(self, size: int) -> Block:
        """Take a free block of `size` bytes, or allocate one."""
        try:
            # try rather than ask first: another thread might take the last one in between
            block = self.free[size].pop()
            self.bytes_free -= size
        except (KeyError, IndexError):
            block = self.fresh(size)
        self.bytes_used += size
        return block

    def fresh(self, size: int) -> Block:
        """Allocate a block."""
        # Shapes have changed, for example because heads were removed: give idle blocks back to the system.
        if self.bytes_free > self.bytes_used:
            self.clear()
        try:
            return Block(size)
        except MemoryError:
            self.clear()
            return Block(size)

    def give(self, size: int, block: Block) -> None:
        """Take a block back."""
        self.bytes_used -= size
        self.bytes_free += size
        self.free.setdefault(size, []).append(block)

    def clear(self) -> None:
        """Give all free blocks back to the system."""
        self.free.clear()
        self.bytes_free = 0


POOL = Pool()


class Lease(np.ndarray):
    """The `base` of the arrays that use a block; it returns the block to the pool when the last of them is freed."""

    __slots__ = ()

    def __del__(self, give: Callable[[int, Block], None] = POOL.give) -> None:
        # `give` is a default argument because at exit module names may be gone before the last array is
        give(self.base.size - LINE, self.base)


def size_class(nbytes: int) -> int:
    """Round `nbytes` up by at most an eighth, so that nearly equal sizes share blocks."""
    step = max(LINE, 1 << max(nbytes.bit_length() - 4, 0))
    return -(-nbytes // step) * step


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
    return Lease(shape, dtype, block, block.start).view(np.ndarray)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Return zeros, like `np.zeros`, in memory from `empty`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
