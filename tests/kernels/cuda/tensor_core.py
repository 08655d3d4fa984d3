"""A tensor core for the simulator: what the PTX instructions that `tensor_cores` uses do, on NumPy's numbers.

The 32 threads of a warp hand in their numbers of a (16 × 8) and b (8 × 8), and each makes its own four sums. Which
numbers are whose is a table in `tensor_cores`.
"""

from operator import mul

import numpy as np

from tinyprune.kernels.cuda.products import tensor_cores

from . import turns

IGNORED = 13  # bits of a float32, the last ones, at which a tensor core does not look


def to_tf32(x):
    """An array, or a number, rounded to 10 bits behind the leading one, half away from zero: cvt.rna.tf32.f32."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32) + np.uint32(1 << (IGNORED - 1))
    return np.where(np.isfinite(x), (bits >> IGNORED << IGNORED).view(np.float32), x)


def as_seen(x):
    """A number without the bits that are ignored."""
    return float((np.float32(x).view(np.uint32) >> IGNORED << IGNORED).view(np.float32))


def mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """mma.m16n8k8 for tf32: the sums of this thread, and what the numbers of its warp add to them."""
    lanes = turns.exchange("mma", [as_seen(x) for x in (a0, a1, a2, a3, b0, b1)])

    def a(i, k):
        return lanes[i % 8 * 4 + k % 4][i // 8 + k // 4 * 2]

    def b(k, j):
        return lanes[j * 4 + k % 4][4 + k // 4]

    lane = turns.current.threadIdx.x % 32
    i, j = lane // 4, lane % 4 * 2
    upper, lower = [a(i, k) for k in range(8)], [a(i + 8, k) for k in range(8)]
    left, right = [b(k, j) for k in range(8)], [b(k, j + 1) for k in range(8)]
    sums = (c0, upper, left), (c1, upper, right), (c2, lower, left), (c3, lower, right)
    return [np.float32(c + sum(map(mul, row, column))) for c, row, column in sums]


def install():
    tensor_cores.EMULATION.rounded = to_tf32
    tensor_cores.EMULATION.mma = mma
