"""What the kernels of the matrix product share: where rows lie in memory, and what is done to a sum after its last k.

Rows may come in groups of `group_rows`, such as the last positions of each batch entry: row i begins at entry
(i // group_rows) · group + (i % group_rows) · row.
"""

from typing import NamedTuple

from numba import types

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import device, float32, floats, int32

THREADS = 256
STRIP = 1024  # numbers of a strip: four for each thread
BIAS, RESIDUAL, RELU, WHERE = 1, 2, 4, 8  # flags in `finish`: see `finished`
ALIGNED_A, ALIGNED_B, ALIGNED_OUT = 1, 2, 4  # flags in `alignment`: what can be read or written four at a time


class Product(NamedTuple):
    """What a kernel is told of one product: a is (M, K), b is (K, N), out (slots, M, N)."""

    a: DeviceArray
    b: DeviceArray
    bias: DeviceArray | None
    residual: DeviceArray | None
    out: DeviceArray
    M: int
    N: int
    K: int
    part: int  # numbers along k that are summed in one slot of out: a multiple of a strip's depth
    group_rows: int  # rows of a group
    a_group: int
    a_row: int
    b_group: int
    b_row: int
    out_group: int
    out_row: int
    finish: int
    alignment: int
    across: int  # tiles of a row of them
    down: int  # rows of tiles
    first: int  # of the launch's blocks, see `together`


PRODUCT = types.NamedTuple((*5 * (floats,), *16 * (int32,)), Product)


@device
def row_begin(i, group_rows, group, row):
    """Return where row i begins."""
    return i // group_rows * group + i % group_rows * row


@device
def positive(x):
    """Return max(x, 0), or NaN for NaN."""
    return float32(0) if x < float32(0) else x


@device
def where(x, other):
    """Return x where the other number is positive, else x · 0, which is NaN for NaN."""
    return x * (float32(1) if other > float32(0) else float32(0))


@device
def finished(x, bias, j, residual, to, finish):
    """Return x after the steps that `finish` has: + bias[j], + residual[to], 0 unless residual[to] > 0, ReLU."""
    if finish & BIAS:
        x += bias[j]
    if finish & RESIDUAL:
        x += residual[to]
    if finish & WHERE:
        x = where(x, residual[to])
    return positive(x) if finish & RELU else x
