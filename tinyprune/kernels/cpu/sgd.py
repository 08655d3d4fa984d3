"""One update of stochastic gradient descent with momentum. See `tinyprune.ops.sgd`.

    for i: b[i] = beta1 · b[i] + grad_scale · grad[i];  θ[i] −= lr · (b[i] + decay · θ[i])

One pass, at the speed of memory. Times (µs, 2 threads), 2¹⁸ numbers in float32: 21, NumPy 95; 128 numbers: 2.5, NumPy
3.4.
"""

import math

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import SMALL, for_update
from tinyprune.kernels.cpu.jit import parallel_kernel


@parallel_kernel
def update(param, grad, momentum, lr, decay, beta1, grad_scale):
    """Update param and momentum, all 1-D."""
    real = param.dtype.type  # numbers in the type of the arrays, or Numba would compute in float64
    shrink, rate, keep, grad_scale = real(1 - lr * decay), real(lr), real(beta1), real(grad_scale)
    if param.size <= SMALL:
        for i in range(param.size):
            momentum[i] = keep * momentum[i] + grad_scale * grad[i]
            param[i] = shrink * param[i] - rate * momentum[i]
    else:
        for i in prange(param.size):
            momentum[i] = keep * momentum[i] + grad_scale * grad[i]
            param[i] = shrink * param[i] - rate * momentum[i]


def sgd_update(
    param: NDArray, grad: NDArray, momentum: NDArray, *, lr: float, decay: float, beta1: float, grad_scale: float = 1.0
) -> None:
    """Update `param` and `momentum`, in place, by one step. As `ops.sgd_update`; float32 or float64.

    Raises:
        ValueError: if `param` or `momentum` is read-only or not C-contiguous.
    """
    given = for_update(param, grad, momentum=momentum)
    if not math.isnan(grad_scale):
        update(*given, *map(float, (lr, decay, beta1, grad_scale)))
