"""L0: how many heads are expected to be open. See `tinyprune.ops.l0`.

    for i: p = sigmoid(log_alpha[i] − beta · log(−gamma / zeta));  L0 += p;  slope[i] = p · (1 − p)

One block, since there are few gates.
"""

import math

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous, scaled
from tinyprune.kernels.cuda.parts.sums import block_sum
from tinyprune.kernels.cuda.pruning.hard_concrete import sigmoid

THREADS = 128


@kernel(floats, float32, int32, floats, floats, threads=THREADS)
def sum_open(log_alpha, shift, size, L0, slope):
    """Compute L0[0] and the slopes, flat."""
    scratch = cuda.shared.array(THREADS, float32)
    total = float32(0)
    for i in range(cuda.threadIdx.x, size, THREADS):
        p = sigmoid(log_alpha[i] - shift)
        slope[i] = p * (float32(1) - p)
        total += p
    total = block_sum(total, scratch)
    if cuda.threadIdx.x == 0:
        L0[0] = total


def l0_forward(log_alpha: DeviceArray, *, beta: float, gamma: float, zeta: float) -> tuple[DeviceArray, tuple]:
    """Compute the expected number of open gates, of shape (): `ops.l0_forward` for float32."""
    check_floats(log_alpha=log_alpha)
    L0, slope = empty(()), empty(log_alpha.shape)
    shift = np.float32(beta * math.log(-gamma / zeta))
    sum_open(1, contiguous(log_alpha), shift, slope.size, L0, slope)
    return L0, (slope,)


def l0_backward(dout: float | DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `l0_forward` with respect to `log_alpha`, as `ops.l0_backward`."""
    (slope,) = cache
    # L0 = Σ sigmoid(log_alpha - …)
    return scaled(slope, dout)
