"""One update of LAMB. See `tinyprune.ops.lamb`.

    for i: update m[i], v[i];  d[i] = m̂ / (√v̂ + eps) + decay · θ[i]
    for i: sums of θ[i]² and d[i]²
    for i: θ[i] −= lr · ‖θ‖ / ‖d‖ · d[i]

Three passes, with a thread for each number or, for the sums, a block for every `many.EACH`. Before the last, one block
computes lr · ‖θ‖ / ‖d‖ in float64. The norms stay in the GPU's memory, so Python does not wait for them.
"""

import math

import numpy as np
from numba import float64

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_in_place
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.updates.adamw import adam, numbers, scale_and_constants
from tinyprune.kernels.cuda.updates.norm import THREADS, doubles, sum_squares, two_sums
from tinyprune.ops.adamw import AdamConstants


@kernel(floats, floats, floats, floats, float32, floats, numbers, int32, floats, threads=THREADS, hot=True)
def direct(param, grad, m, v, decay, scale, constants, size, d):
    """Update m and v, and compute the direction d. All flat."""
    i, factor = cuda.grid(1), scale[0]
    if i < size and factor == factor:  # not NaN
        m[i], v[i], direction = adam(factor * grad[i], m[i], v[i], constants)
        d[i] = direction + decay * param[i]


@kernel(doubles, int32, float64, floats, threads=THREADS, float64=True)
def rate_of(sums, count, lr, rate):
    """rate[0] = lr · ‖θ‖ / ‖d‖, from as many sums of squares of the one as of the other; lr if one is 0. One block."""
    of_param, of_d = two_sums(sums, count, 2 * count, cuda.shared.array(THREADS, float64))
    if cuda.threadIdx.x == 0:
        if of_param == 0 or of_d == 0:
            rate[0] = lr
        else:
            rate[0] = lr * (math.sqrt(of_param) / math.sqrt(of_d))


@kernel(floats, floats, floats, floats, int32, threads=THREADS, hot=True)
def move(param, d, rate, scale, size):
    """param −= rate[0] · d, both flat."""
    i = cuda.grid(1)
    if i < size and scale[0] == scale[0]:
        param[i] -= rate[0] * d[i]


def lamb_update(
    param: DeviceArray,
    grad: DeviceArray,
    m: DeviceArray,
    v: DeviceArray,
    *,
    lr: float,
    decay: float,
    constants: AdamConstants,
) -> None:
    """Update `param` and its moments `m` and `v`, in place, by one step: `ops.lamb_update` for float32.

    Raises:
        ValueError: if `param`, `m` or `v` is not C-contiguous.
    """
    check_alike(param=param, grad=grad, m=m, v=v)
    check_in_place(param=param, m=m, v=v)
    size, d, rate = param.size, empty(param.shape), empty(())
    grid = blocks(size, THREADS)
    scale, shared = scale_and_constants(constants)
    direct(grid, param, contiguous(grad), m, v, np.float32(decay), scale, shared, size, d)
    sums, ((_, count), _) = sum_squares([param, d])
    rate_of(1, sums, count, lr, rate)
    move(grid, param, d, rate, scale, size)
