"""The GPU's memory: a pool of recycled allocations, which `kernels.pool` calls blocks.

All kernels run in order on the default stream, so a recycled one is written only after earlier kernels have read it.
It belongs to the pool alone, which frees it when it is cleared; at the program's end the driver does.
"""

from tinyprune.kernels import pool
from tinyprune.kernels.cuda.device.driver import driver

SMALLEST = 256  # bytes of a block


class DevicePool(pool.Pool):
    """A pool of addresses."""

    most_used = 0  # largest `bytes_used` so far

    def allocate(self, size: int) -> int:
        """Return a new block. Raises MemoryError if the GPU has no room for it."""
        return driver().allocate(size)

    def release(self, block: int) -> None:
        """Free a block."""
        driver().free(block)

    def take(self, size: int) -> int:
        """Take a block of `size` bytes, recycled if possible."""
        block = super().take(size)
        self.most_used = max(self.most_used, self.bytes_used)
        return block

    def fresh(self, size: int) -> int:
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


POOL = DevicePool()


class Storage:
    """The memory of an array and its views: `entries` of 4 bytes. It returns to the pool when the last is deleted."""

    __slots__ = ("address", "driver", "pool", "size")

    def __init__(self, entries: int) -> None:
        self.size = pool.size_class(max(4 * entries, SMALLEST))
        self.address = POOL.take(self.size)
        self.pool, self.driver = POOL, driver()  # at exit, the module's names may be gone before the last array
        self.driver.begin(self.address, 4 * entries)

    def __del__(self) -> None:
        if hasattr(self, "driver"):
            self.driver.end(self.address, self.size)
            self.pool.give(self.size, self.address)
