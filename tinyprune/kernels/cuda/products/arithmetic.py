"""What the kernels of the matrix product share: where rows lie in memory, and what is done to a sum after its last k.

Rows may come in groups of `group_rows`, such as the last positions of each batch entry: row i begins at entry
(i // group_rows) · group + (i % group_rows) · row.
"""

from typing import NamedTuple

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import device, float32

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
    slot_depth: int  # numbers along k that are summed in one slot of out: a multiple of a strip's depth
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


@device
def row_begin(i, group_rows, group, row):
    """Return where row i begins."""
    return i // group_rows * group + i % group_rows * row


@device
def finished(x, p, row, j):
    """Return x after the steps that p.finish has: + bias[j], + residual, · 0 unless residual > 0, ReLU; NaN stays NaN.

    row: where x's row begins in out, and in the residual.
    """
    if p.finish & BIAS:
        x += p.bias[j]
    if p.finish & RESIDUAL:
        x += p.residual[row + j]
    if p.finish & WHERE:
        x *= float32(1) if p.residual[row + j] > float32(0) else float32(0)
    if p.finish & RELU and x < float32(0):
        x = float32(0)
    return x
