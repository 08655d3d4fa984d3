"""Column sums: Σ over all rows of a matrix, always in the same order.

    for c: out[c] = Σ_r x[r, c]

A block takes 32 columns, side by side in memory, and a run of rows; its 8 lines of threads take every eighth row, and
their sums are joined in shared memory. The runs' sums are rows again, and summed the same way. How long a run is
depends on the shape alone.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.jit import blocks, cuda, float32, floats, int32, kernel

WIDE = 32  # columns of a block
LINES = 8  # of threads
RUN = 64  # rows of a block


@kernel(floats, int32, int32, floats, threads=(WIDE, LINES))
def run_sums(x, R, C, out):
    """out (runs, C): the sums over each run of rows of x (R, C)."""
    scratch = cuda.shared.array((LINES, WIDE), float32)
    column, line, run = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
    c = cuda.blockIdx.x * WIDE + column
    end = min((run + 1) * RUN, R)
    total = float32(0)
    if c < C:
        for r in range(run * RUN + line, end, LINES):
            total += x[r * C + c]
    scratch[line, column] = total
    cuda.syncthreads()  # all lines have written before the first one sums them
    if line == 0 and c < C:
        for other in range(1, LINES):
            total += scratch[other, column]
        out[run * C + c] = total


def column_sums(x: DeviceArray) -> DeviceArray:
    """Σ over the rows of a contiguous matrix (R, C) → (C,); zeros without rows."""
    R, C = x.shape
    while True:
        runs = max(blocks(R, RUN), 1)
        out = empty((runs, C))
        run_sums((blocks(C, WIDE), runs), x, R, C, out)
        if runs == 1:
            return out.reshape(C)
        x, R = out, runs
