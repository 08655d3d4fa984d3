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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64  # bytes in a cache line
SMALL = 4096  # bytes; below it NumPy's own allocator is as good


class Block(NamedTuple):
    """Some memory, and where its first cache line begins."""

    memory: NDArray[np.uint8]
    address: int


class Pool:
    """Blocks by size class, and how many bytes are out and how many free."""

    def __init__(self) -> None:
        self.free: dict[int, list[Block]] = {}
        self.bytes_free = 0
        self.bytes_used = 0

    def take(self, size: int) -> Block:
        """A block of `size` bytes, recycled if there is one."""
        self.bytes_used += size
        blocks = self.free.get(size)
        if blocks:
            self.bytes_free -= size
            return blocks.pop()
        # Shapes have changed, say because heads were removed: what lies idle by then is given back to the system.
        if self.bytes_free > self.bytes_used:
            self.clear()
        memory = np.empty(size + LINE, np.uint8)
        address = memory.ctypes.data
        return Block(memory, address + -address % LINE)

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


class Lease:
    """A block while arrays look at it: it is their `base`, and returns the block when the last of them is gone."""

    __slots__ = ("__array_interface__", "block", "pool", "size")

    def __init__(self, size: int, shape: tuple[int, ...], typestr: str) -> None:
        self.size = size
        self.pool = POOL  # kept, since module names may be gone before the last array
        self.block = POOL.take(size)
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (self.block.address, False),
        }

    def __del__(self) -> None:
        self.pool.give(self.size, self.block)


def size_class(nbytes: int) -> int:
    """`nbytes` rounded up by at most an eighth, so that nearly equal sizes share their blocks."""
    step = max(LINE, 1 << max(nbytes.bit_length() - 4, 0))
    return -(-nbytes // step) * step


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Like `np.empty`, of recycled memory that starts on a cache line.

    Args:
        shape: of the array.
        dtype: of plain numbers.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALL:
        return np.empty(shape, dtype)
    return np.asarray(Lease(size_class(nbytes), shape, dtype.str))


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Like `np.zeros`, see `empty`."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
