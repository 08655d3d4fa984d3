"""Matrix product, from three loops to the kernel: out = a · b, a (M, K), b (K, N), any shape, one dtype.

Every rung does the same 2·M·N·K operations. What changes is how often each number travels from memory to a register.
"""

from collections.abc import Callable
from functools import wraps

import numba
import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.kernels.cpu.simd import REGISTERS, lanes, load, microkernel, store

ROWS = 12 if REGISTERS == 32 else 6  # of a register tile two vectors wide
DEPTH = 256  # of a block, along k
COLUMNS = 256  # of a block

set_tile = microkernel(ROWS, 2, False)
add_tile = microkernel(ROWS, 2, True)


def rung(multiply: Callable[[NDArray, NDArray], NDArray]) -> Callable[[NDArray, NDArray], NDArray]:
    """Check the arguments of `multiply`, which compiled code does not; ValueError if they do not fit together."""

    @wraps(multiply)
    def checked(a: NDArray, b: NDArray) -> NDArray:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"a and b must be (M, K) and (K, N), got {a.shape} and {b.shape}")
        check_floats(a=a, b=b)
        return multiply(np.ascontiguousarray(a), np.ascontiguousarray(b))

    return checked


@rung
def python_loops(a: NDArray, b: NDArray) -> NDArray:
    """The definition, in Python.

    Each multiplication makes three Python objects and looks up what `*` means for them: about 100 ns, of which the
    multiplication itself takes a thousandth.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for i in range(M):
        for j in range(N):
            for k in range(K):
                out[i, j] += a[i, k] * b[k, j]
    return out


@rung
@numba.njit
def compiled_loops(a: NDArray, b: NDArray) -> NDArray:
    """The same lines, compiled by Numba: no objects, the types are known.

    The innermost loop walks down a column of b, a step of a whole row each time: every number comes with a cache line
    of 64 bytes, of which 4 are used. It also adds one number after the other into the same sum, and each addition has
    to wait for the one before.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for i in range(M):
        for j in range(N):
            for k in range(K):
                out[i, j] += a[i, k] * b[k, j]
    return out


@rung
@numba.njit
def loop_order(a: NDArray, b: NDArray) -> NDArray:
    """The two inner loops change places: the innermost one walks along rows of b and of out.

    All of a cache line is used, and neighbours in a row do not depend on one another, so that the compiler can work on
    a whole vector of them at once (16 float32 with AVX-512). But each multiply-add still loads a number of out and
    stores it again.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for i in range(M):
        for k in range(K):
            x = a[i, k]
            for j in range(N):
                out[i, j] += x * b[k, j]
    return out


@numba.njit
def add_rest(a: NDArray, b: NDArray, out: NDArray, first_row: int, first_column: int) -> None:
    """Compute what whole tiles leave: out[i, j] from `first_row` on, and to the right of `first_column`."""
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    for i in range(M):
        begin = first_column if i < first_row else 0
        out[i, begin:] = 0
        for k in range(K):
            x = a[i, k]
            for j in range(begin, N):
                out[i, j] += x * b[k, j]


@rung
@numba.njit
def register_tile(a: NDArray, b: NDArray) -> NDArray:
    """A tile of out stays in registers until it is done: 12 rows by two vectors (6, where there are 16 registers).

    For every k it loads two vectors of b and 12 numbers of a and does 24 multiply-adds with them; out is stored once.
    The 24 sums do not wait for one another, so that the processor always has two to work on.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    width = 2 * lanes(b)
    out = np.empty((M, N), a.dtype)
    whole_rows, whole_columns = (M // ROWS * ROWS, N // width * width) if K else (0, 0)
    step = (
        a.strides[1] // a.itemsize
    )  # 1; as a constant it makes LLVM read ahead in a, and no registers are left for the sums
    for i in range(0, whole_rows, ROWS):
        for j in range(0, whole_columns, width):
            set_tile(a, i * K, K, step, b, j, N, out, i * N + j, N, K)
    add_rest(a, b, out, whole_rows, whole_columns)
    return out


@numba.njit
def pack(b: NDArray, k: int, depth: int, j: int, columns: int, panels: NDArray) -> None:
    """Copy depth × columns of b into panels: `[two vectors of columns][k][column]`."""
    L = lanes(b)
    N = b.shape[1]
    for panel in range(0, columns, 2 * L):
        for row in range(depth):
            for half in range(0, 2 * L, L):
                store(panels, panel * depth + row * 2 * L + half, load(b, (k + row) * N + j + panel + half))


@rung
@numba.njit
def packed_blocks(a: NDArray, b: NDArray) -> NDArray:
    """Blocks of b that stay in the second-level cache, copied so that the tile reads them in one piece.

    (Goto & van de Geijn 2008.) `register_tile` reads all of b again for every 12 rows, and in it a short piece of every
    row: another page of memory each time. A packed block of 256 × 256 lies in one run, and is used for all rows of a
    before the next one is packed. Large matrices gain by it; the others pay for a copy.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    width = 2 * lanes(b)
    out = np.empty((M, N), a.dtype)
    panels = np.empty(DEPTH * COLUMNS, a.dtype)
    whole_rows, whole_columns = (M // ROWS * ROWS, N // width * width) if K else (0, 0)
    step = a.strides[1] // a.itemsize  # see above
    for j in range(0, whole_columns, COLUMNS):
        columns = min(COLUMNS, whole_columns - j)
        for k in range(0, K, DEPTH):
            depth = min(DEPTH, K - k)
            pack(b, k, depth, j, columns, panels)
            for i in range(0, whole_rows, ROWS):
                for c in range(0, columns, width):
                    if k == 0:
                        set_tile(a, i * K, K, step, panels, c * depth, width, out, i * N + j + c, N, depth)
                    else:
                        add_tile(a, i * K + k, K, step, panels, c * depth, width, out, i * N + j + c, N, depth)
    add_rest(a, b, out, whole_rows, whole_columns)
    return out


@rung
def kernel(a: NDArray, b: NDArray) -> NDArray:
    """`tinyprune.kernels.cpu.matmul`: the same on all processors, each with blocks of its own.

    No thread waits for another before the end. The last tile of a row or column runs in vectors too, transposed
    matrices are read where they lie, and memory for blocks and results is used again instead of asked for.
    """
    return matmul(a, b)


RUNGS = {
    "Python loops": python_loops,
    "compiled": compiled_loops,
    "loop order": loop_order,
    "register tile": register_tile,
    "packed blocks": packed_blocks,
    "kernel, threads": kernel,
}
