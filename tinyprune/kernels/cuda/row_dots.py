"""Row products: what each row of one array makes with a row of another.

    for r, h: out[r, h] = factor · Σ_d x[r, h, d] · y[r, h, d]        or y[h, d], the same for all r

A block takes 16 rows, 8 threads each row, whose sums are joined in shared memory.
"""

from __future__ import annotations

import math

from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.jit import blocks, cuda, float32, floats, int32, kernel

LANES = 8
LINES = 16


@kernel(floats, floats, int32, int32, int32, int32, float32, floats, threads=(LANES, LINES))
def dot_rows(x, y, R, H, D, y_step, factor, out):
    """out (R, H): a block for 16 r of one h. y_step: from y's row r to its next."""
    scratch = cuda.shared.array((LINES, LANES), float32)
    lane, line, h = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
    r = cuda.blockIdx.x * LINES + line
    total = float32(0)
    if r < R:
        for d in range(lane, D, LANES):
            total += x[(r * H + h) * D + d] * y[r * y_step + h * D + d]
    scratch[line, lane] = total
    cuda.syncthreads()  # all lanes have written before the first one sums them
    if lane == 0 and r < R:
        for other in range(1, LANES):
            total += scratch[line, other]
        out[r * H + h] = total * factor


def row_dots(x: DeviceArray, y: DeviceArray, factor: float = 1.0) -> DeviceArray:
    """The products of x (…, H, D) with y, of the same shape or (H, D), both contiguous → (…, H)."""
    *rows, H, D = x.shape
    R = math.prod(rows)
    out = empty((*rows, H))
    dot_rows((blocks(R, LINES), H), x, y, R, H, D, H * D if y.ndim == x.ndim else 0, factor, out)
    return out
