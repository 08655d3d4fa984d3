"""Memory for results and scratch, recycled.

A training step asks for arrays of the same sizes again and again. Fresh memory from the system costs a page fault for
every 4 KiB, more than the arithmetic on a small array; memory that was used a moment ago is mapped and often still in
the cache. So a block goes back to a free list when the last array that looks at it is gone, and the next request of its
size class gets it. Blocks start on a cache line (64 bytes), so that no vector load straddles two.

The memory behind an array is never handed out twice: a block knows by its own end of life, not by counting, that
nobody looks at it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64  # bytes in a cache line
SMALL = 4096  # bytes; below it NumPy's own allocator is as good


class Block(np.ndarray):
    """Some bytes, of which the first cache line begins at number `start`.

    A type of its own, since NumPy lets a view of a view of an ordinary array look at that array itself, past the lease.
    """

    __slots__ = ("start",)

    def __new__(cls, size: int) -> Self:
        """Fresh memory for `size` bytes from a cache line on."""
        block = super().__new__(cls, size + LINE, np.uint8)
        block.start = -block.ctypes.data % LINE
        return block


class Pool:
    """Blocks by size class, and how many bytes are out and how many free."""

    def __init__(self) -> None:
        self.free: dict[int, list[Block]] = {}
        self.bytes_free = 0
        self.bytes_used = 0

    def take(self, size: int) -> Block:
        """A block of `size` bytes, recycled if there is one."""
        try:
            # not a question first: another thread might take the last one in between
            block = self.free[size].pop()
            self.bytes_free -= size
        except (KeyError, IndexError):
            block = self.fresh(size)
        self.bytes_used += size
        return block

    def fresh(self, size: int) -> Block:
        """A new block."""
        # Shapes have changed, say because heads were removed: what lies idle by then is given back to the system.
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
    """A block while arrays look at it: it is their `base`, and returns the block when the last of them is gone."""

    __slots__ = ()

    def __del__(self, give: Callable[[int, Block], None] = POOL.give) -> None:
        # `give` is kept here, since module names may be gone before the last array
        give(self.base.size - LINE, self.base)


def size_class(nbytes: int) -> int:
    """`nbytes` rounded up by at most an eighth, so that nearly equal sizes share their blocks."""
    step = max(LINE, 1 << max(nbytes.bit_length() - 4, 0))
    return -(-nbytes // step) * step


@lru_cache(4096)
def block_size(shape: int | tuple[int, ...], dtype: DTypeLike) -> int:
    """How many bytes the block for such an array has; 0 if it shall have none."""
    nbytes = (shape if isinstance(shape, int) else math.prod(shape)) * np.dtype(dtype).itemsize
    return size_class(nbytes) if nbytes >= SMALL else 0


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Like `np.empty`, of recycled memory that starts on a cache line.

    Args:
        shape: of the array.
        dtype: of plain numbers.
    """
    size = block_size(shape, dtype)
    if not size:
        return np.empty(shape, dtype)
    block = POOL.take(size)
    return Lease(shape, dtype, block, block.start).view(np.ndarray)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Like `np.zeros`, see `empty`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
