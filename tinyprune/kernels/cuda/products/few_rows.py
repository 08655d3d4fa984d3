"""Matrix product with few rows, as when text is generated.

    for i, j: out[i, j] = Σ_k a[i, k] · b[k, j]

The time goes into reading b, once for each row of a. A block of 32 × 8 threads computes 32 numbers of one row. Where
rows of b run along j, so do the threads along x, and each line of threads takes every eighth k. Where they run along k,
so do the threads along x, and each line takes four of the 32 j, one after the other. Either way neighbouring threads
read neighbouring numbers, and their sums are joined in shared memory.
"""

from tinyprune.kernels.cuda.device.jit import Kernel, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.products.arithmetic import finished

WIDE, LINES = 32, 8  # threads of a block along x and y
FEW = 8  # the most rows for which these kernels are used
APART = WIDE + 1  # numbers from row to row where columns are read, so that these are in different banks


@kernel(*5 * (floats,), *6 * (int32,), threads=(WIDE, LINES))
def rows_of_b(a, b, bias, residual, out, N, K, a_row, b_row, c_row, finish):
    """Compute out = a · b, finished, where b[k, j] is b[k · b_row + j]."""
    scratch = cuda.shared.array((LINES, WIDE), float32)
    x, line, i = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
    j = cuda.blockIdx.x * WIDE + x
    total = float32(0)
    if j < N:
        for k in range(line, K, LINES):
            total += a[i * a_row + k] * b[k * b_row + j]
    scratch[line, x] = total
    cuda.syncthreads()  # all lines have written before the first one sums them
    if line == 0 and j < N:
        for other in range(1, LINES):
            total += scratch[other, x]
        to = i * c_row + j
        out[to] = finished(total, bias, j, residual, to, finish)


@kernel(*5 * (floats,), *6 * (int32,), threads=(WIDE, LINES))
def columns_of_b(a, b, bias, residual, out, N, K, a_row, b_row, c_row, finish):
    """Compute out = a · b, finished, where b[k, j] is b[j · b_row + k]."""
    scratch = cuda.shared.array((WIDE, APART), float32)
    x, line, i = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
    left = cuda.blockIdx.x * WIDE
    for column in range(line, WIDE, LINES):
        j = left + column
        total = float32(0)
        if j < N:
            for k in range(x, K, WIDE):
                total += a[i * a_row + k] * b[j * b_row + k]
        scratch[column, x] = total
    cuda.syncthreads()  # all have written before the first line sums them
    j = left + x
    if line == 0 and j < N:
        total = float32(0)
        for other in range(WIDE):
            total += scratch[x, other]
        to = i * c_row + j
        out[to] = finished(total, bias, j, residual, to, finish)


FEW_ROWS: dict[bool, Kernel] = {False: rows_of_b, True: columns_of_b}  # by whether k runs along the rows of b
