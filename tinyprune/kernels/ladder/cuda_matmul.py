"""Matrix product on a GPU, from a thread for each number to tiles in registers: a (M, K) · b (K, N), float32.

Every rung makes the same M·N·K multiply-adds. What changes is how often a number is read from global memory, and with
how many others. All run on a GPU or, slowly and with the same result, in Numba's simulator (NUMBA_ENABLE_CUDASIM=1, set
before Numba is imported). Only importing this module needs `numba.cuda`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, void
from numpy.typing import NDArray

ROW = (32, 8)  # threads of a block along x and y for the first rungs: eight warps, each with one y
TILE = 16  # threads of a block along x and along y for the others: eight warps, each with two y
EACH = 4  # rows and columns of out that a thread of `register_tile` computes
WIDE = TILE * EACH  # rows and columns of out that its block computes
DEPTH = 16  # of its tiles, along k
ZERO = np.float32(0)  # 0.0 would be a float64, and so would every sum that starts with it

MATRIX = float32[:, ::1]
SIGNATURE = void(MATRIX, MATRIX, MATRIX)


@cuda.jit
def rows_along_x(a: NDArray, b: NDArray, out: NDArray) -> None:
    """Compute each number of out in a thread: the inner loop of the definition; the two outer loops are the grid.

    Each multiply-add loads two numbers from global memory. The 32 threads of a warp differ in x, here the row: at every
    step they read 32 numbers of a that lie K apart, each in another sector of 32 bytes, of which 4 are used.
    """
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = ZERO
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        out[i, j] = total


@cuda.jit
def columns_along_x(a: NDArray, b: NDArray, out: NDArray) -> None:
    """Do the same with x and y exchanged: neighbours in a warp are neighbours in a row of b and of out.

    At every step a warp reads neighbouring numbers of b, in a few whole sectors (the loads are coalesced), and one or
    two numbers of a that its threads share. There are as many loads as before, but fewer sectors.
    """
    j, i = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = ZERO
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        out[i, j] = total


@cuda.jit
def shared_tiles(a: NDArray, b: NDArray, out: NDArray) -> None:
    """Copy a tile of a and a tile of b to a block's shared memory, where all its threads read them.

    Each thread loads one number of each tile and uses 16 of each: a sixteenth of the loads. Beyond the edges of a and b
    the tiles are filled with zeros, which add nothing. Every multiply-add still reads two numbers, from shared memory.
    """
    tile_a = cuda.shared.array((TILE, TILE), float32)
    tile_b = cuda.shared.array((TILE, TILE), float32)
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    j, i = cuda.grid(2)
    total = ZERO
    for first in range(0, K, TILE):
        tile_a[row, column] = a[i, first + column] if i < M and first + column < K else ZERO
        tile_b[row, column] = b[first + row, j] if first + row < K and j < N else ZERO
        cuda.syncthreads()  # both tiles are whole before anyone reads them
        for k in range(TILE):
            total += tile_a[row, k] * tile_b[k, column]
        cuda.syncthreads()  # everyone has read them before anyone writes the next
    if i < M and j < N:
        out[i, j] = total


@cuda.jit
def register_tile(a: NDArray, b: NDArray, out: NDArray) -> None:
    """Compute 4 × 4 numbers of out in each thread, with their sums in registers.

    For every k a thread reads 4 + 4 numbers from shared memory for 16 multiply-adds, where `shared_tiles` reads 32. A
    block's tile of out is 64 × 64, so that global memory is read four times less often as well. The 16 sums do not wait
    for one another. A thread's rows and columns are 16 apart, so that neighbouring threads stay side by side.
    """
    tile_a = cuda.shared.array((WIDE, DEPTH), float32)
    tile_b = cuda.shared.array((DEPTH, WIDE), float32)
    sums = cuda.local.array((EACH, EACH), float32)
    from_a = cuda.local.array(EACH, float32)
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = cuda.blockIdx.y * WIDE, cuda.blockIdx.x * WIDE
    for y in range(EACH):
        for x in range(EACH):
            sums[y, x] = ZERO
    for first in range(0, K, DEPTH):
        for part in range(EACH):
            i, k = top + row + part * TILE, first + column
            tile_a[row + part * TILE, column] = a[i, k] if i < M and k < K else ZERO
            k, j = first + row, left + column + part * TILE
            tile_b[row, column + part * TILE] = b[k, j] if k < K and j < N else ZERO
        cuda.syncthreads()
        for k in range(DEPTH):
            for y in range(EACH):
                from_a[y] = tile_a[row + y * TILE, k]
            for x in range(EACH):
                from_b = tile_b[k, column + x * TILE]
                for y in range(EACH):
                    sums[y, x] += from_a[y] * from_b
        cuda.syncthreads()
    for y in range(EACH):
        for x in range(EACH):
            i, j = top + row + y * TILE, left + column + x * TILE
            if i < M and j < N:
                out[i, j] = sums[y, x]


@dataclass(frozen=True)
class Rung:
    """A kernel and how to launch it. Call it with a and b for their product."""

    kernel: Callable[..., Any]
    x: int  # what a block computes of out along the grid's x …
    y: int  # … and along its y
    block: tuple[int, int] = (TILE, TILE)  # threads along x and y
    x_is_row: bool = False

    def grid(self, M: int, N: int) -> tuple[int, int]:
        """Return how many blocks along x and y cover an out of M × N; the last ones may be partly empty."""
        along_x, along_y = (M, N) if self.x_is_row else (N, M)
        return -(-along_x // self.x), -(-along_y // self.y)

    def launch(self, a: Any, b: Any, out: Any) -> None:
        """Write a · b to out, all in the GPU's memory. Returns before it is done, see `cuda.synchronize`."""
        self.kernel[self.grid(*out.shape), self.block](a, b, out)

    def __call__(self, a: NDArray, b: NDArray) -> NDArray:
        """Return a · b. Raises ValueError if they do not fit, which a kernel does not check."""
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"a and b must be (M, K) and (K, N), got {a.shape} and {b.shape}")
        if a.dtype != np.float32 or b.dtype != np.float32:
            raise ValueError(f"a and b must be float32, got {a.dtype} and {b.dtype}")
        out = np.zeros((a.shape[0], b.shape[1]), np.float32)
        if a.size == 0 or b.size == 0:  # a grid without blocks cannot be launched
            return out
        on_device = cuda.to_device(out)
        self.launch(cuda.to_device(np.ascontiguousarray(a)), cuda.to_device(np.ascontiguousarray(b)), on_device)
        return on_device.copy_to_host()


RUNGS = {
    "rows along x": Rung(rows_along_x, *ROW, ROW, x_is_row=True),
    "columns along x": Rung(columns_along_x, *ROW, ROW),
    "shared tiles": Rung(shared_tiles, TILE, TILE),
    "register tile": Rung(register_tile, WIDE, WIDE),
}
