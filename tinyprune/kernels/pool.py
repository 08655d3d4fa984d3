"""A pool of memory, in which blocks are recycled: both compiled engines have one.

A training step asks for arrays of the same sizes again and again, and new memory is expensive: on a CPU each 4 KiB of
it costs a page fault, and on a GPU the driver stops all work. So a block returns to the pool when the last array that
uses it is freed, and serves the next request of its size class.
"""

from typing import Any

LINE = 64  # bytes in a cache line


class Pool:
    """Free blocks by size, and how many bytes are in use and free. Subclasses allocate and release blocks."""

    def __init__(self) -> None:
        self.free: dict[int, list[Any]] = {}
        self.bytes_free = 0
        self.bytes_used = 0

    def allocate(self, size: int) -> Any:
        """Return a new block. Raises MemoryError if there is no room for it."""
        raise NotImplementedError

    def release(self, block: Any) -> None:
        """Give a block back to the system; Python's own objects need no more than to be forgotten."""

    def take(self, size: int) -> Any:
        """Take a free block of `size` bytes, or allocate one."""
        try:
            # try rather than ask first: another thread might take the last one in between
            block = self.free[size].pop()
            self.bytes_free -= size
        except (KeyError, IndexError):
            block = self.fresh(size)
        self.bytes_used += size
        return block

    def fresh(self, size: int) -> Any:
        """Allocate a block, if need be after all free ones were released."""
        try:
            return self.allocate(size)
        except MemoryError:
            self.clear()
            return self.allocate(size)

    def give(self, size: int, block: Any) -> None:
        """Take a block back."""
        self.bytes_used -= size
        self.bytes_free += size
        self.free.setdefault(size, []).append(block)

    def clear(self) -> None:
        """Release all free blocks, also those that return meanwhile, by Python's collector or in another thread."""
        while self.free:
            size, blocks = self.free.popitem()
            while blocks:
                self.release(blocks.pop())
                self.bytes_free -= size


def size_class(nbytes: int) -> int:
    """Round `nbytes` up by at most an eighth, so that nearly equal sizes share blocks."""
    step = max(LINE, 1 << max(nbytes.bit_length() - 4, 0))
    return -(-nbytes // step) * step
