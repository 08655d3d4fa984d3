"""Squared norm: the sum of the squares of all entries. See `tinyprune.ops.norm`.

    for i: sum += x[i]²                      in float64

In a plain loop each addition waits for the one before. Here there are 256 sums, which LLVM turns into vectors and which
are added at the end. An array is cut into blocks of one size, whatever the number of threads, and the sums of the
blocks are added in order.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import FLOATS, SMALL, check_floats, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.ops.clipping import factor_of

COLUMNS = 256  # sums that are kept at once


@kernel
def block_squares(x):
    """Sum x² of a flat x: first sums[j] = x[j]² + x[j + COLUMNS]² + …, then these."""
    sums = np.zeros(COLUMNS, np.float64)
    for start in range(0, x.size, COLUMNS):
        part = x[start : start + COLUMNS]
        for j in range(part.size):
            value = np.float64(part[j])
            sums[j] += value * value
    result = 0.0
    for j in range(COLUMNS):
        result += sums[j]
    return result


@parallel_kernel
def sum_of_squares(x):
    """Sum x² of a flat x by blocks, whose sums are added in order."""
    if x.size <= SMALL:
        return block_squares(x)
    blocks = (x.size + SMALL - 1) // SMALL
    sums = np.empty(blocks, np.float64)
    for block in prange(blocks):
        sums[block] = block_squares(x[block * SMALL : (block + 1) * SMALL])
    result = 0.0
    for block in range(blocks):
        result += sums[block]
    return result


def squared_norm(x: NDArray) -> float:
    """Compute ‖x‖² over all entries, in float64, as `ops.squared_norm`; float32 or float64."""
    if x.dtype not in FLOATS:
        check_floats(x=x)
    return sum_of_squares(flat(x))


def squared_norms(arrays: Sequence[NDArray]) -> list[float]:
    """Compute `squared_norm` of each array, as `ops.squared_norms`."""
    return [squared_norm(x) for x in arrays]


def clipping(grads: Sequence[NDArray], losses: Sequence[float | np.inexact], *, max_norm: float) -> tuple[float, float]:
    """Compute the joint norm and the clipping factor, as `ops.clipping`."""
    return factor_of(squared_norms(grads), losses, max_norm)
