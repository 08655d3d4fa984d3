"""One update of LAMB. See `tinyprune.ops.lamb`.

    for i: m[i], v[i] take in the gradient;  d[i] = m̂ / (√v̂ + eps) + decay · θ[i]
    for i: sums of θ[i]² and d[i]²
    for i: θ[i] −= lr · ‖θ‖ / ‖d‖ · d[i]

The norms are needed before the second pass, so d is stored; computing it again there takes a third longer.
"""

import math

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.adamw import constants_of, direction
from tinyprune.kernels.cpu.arguments import SMALL, for_update
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.norm import sum_of_squares
from tinyprune.ops.adamw import AdamConstants


@parallel_kernel
def direct(param, grad, m, v, decay, beta1, beta2, eps, step, grad_scale, d):
    """Update m and v, and set d to the direction in which param moves. All 1-D."""
    constants = constants_of(param.dtype.type, beta1, beta2, eps, step, grad_scale)
    decay = param.dtype.type(decay)
    if param.size <= SMALL:
        for i in range(param.size):
            d[i] = direction(i, grad, m, v, constants) + decay * param[i]
    else:
        for i in prange(param.size):
            d[i] = direction(i, grad, m, v, constants) + decay * param[i]


@parallel_kernel
def move(param, d, rate):
    """Subtract rate · d from param, both 1-D."""
    rate = param.dtype.type(rate)
    if param.size <= SMALL:
        for i in range(param.size):
            param[i] -= rate * d[i]
    else:
        for i in prange(param.size):
            param[i] -= rate * d[i]


def lamb_update(
    param: NDArray, grad: NDArray, m: NDArray, v: NDArray, *, lr: float, decay: float, constants: AdamConstants
) -> None:
    """Update `param` and its moments `m` and `v`, in place, by one step. As `ops.lamb_update`; float32 or float64.

    Raises:
        ValueError: if `param`, `m` or `v` is read-only or not C-contiguous.
    """
    param, grad, m, v = for_update(param, grad, m=m, v=v)
    if math.isnan(constants.grad_scale):
        return
    d = workspace.empty(param.size, param.dtype)
    direct(param, grad, m, v, *map(float, (decay, *constants)), d)
    param_norm, d_norm = math.sqrt(sum_of_squares(param)), math.sqrt(sum_of_squares(d))
    ratio = param_norm / d_norm if param_norm and d_norm else 1.0
    move(param, d, float(lr * ratio))
