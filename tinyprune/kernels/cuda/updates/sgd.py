"""One update of stochastic gradient descent with momentum. See `tinyprune.ops.sgd`.

    for i: b[i] = beta1 · b[i] + grad_scale · grad[i];  θ[i] −= lr · (b[i] + decay · θ[i])

One thread for each number. In one pass three arrays are read and two written.
"""

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_in_place
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.updates.adamw import scale_of

THREADS = 256


@kernel(floats, floats, floats, float32, float32, float32, floats, int32, threads=THREADS, hot=True)
def sgd_all(param, grad, momentum, shrink, rate, keep, scale, size):
    """Update param and momentum, all flat."""
    i, factor = cuda.grid(1), scale[0]
    if i < size and factor == factor:  # not NaN
        b = keep * momentum[i] + factor * grad[i]
        momentum[i] = b
        param[i] = shrink * param[i] - rate * b


def sgd_update(
    param: DeviceArray,
    grad: DeviceArray,
    momentum: DeviceArray,
    *,
    lr: float,
    decay: float,
    beta1: float,
    grad_scale: float | DeviceArray = 1.0,
) -> None:
    """Update `param` and `momentum`, in place, by one step: `ops.sgd_update` for float32.

    Raises:
        ValueError: if `param` or `momentum` is not C-contiguous.
    """
    check_alike(param=param, grad=grad, momentum=momentum)
    check_in_place(param=param, momentum=momentum)
    numbers, scale = map(np.float32, (1 - lr * decay, lr, beta1)), scale_of(grad_scale)
    sgd_all(blocks(param.size, THREADS), param, contiguous(grad), momentum, *numbers, scale, param.size)
