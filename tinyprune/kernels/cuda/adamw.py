"""One update of AdamW. See `tinyprune.ops.adamw`.

    for i: g = grad_scale · grad[i];  m[i], v[i] take in g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])

One thread for each number. One pass: four arrays are read and three written. The formula is `formulas.adam`, the same
as on the CPU; here the compiler may round a product and a sum once instead of twice.
"""

from __future__ import annotations

import numpy as np
from numba import types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import check_alike, check_in_place, contiguous
from tinyprune.kernels.cuda.array import DeviceArray
from tinyprune.kernels.cuda.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.formulas import adam_constants

THREADS = 256

constants = types.UniTuple(float32, 8)  # of `adam_constants`
adam = device(formulas.adam)


@kernel(floats, floats, floats, floats, float32, float32, constants, int32, threads=THREADS, hot=True)
def adamw_all(param, grad, m, v, shrink, rate, constants, size):
    """Move param, m and v, all flat."""
    i = cuda.grid(1)
    if i < size:
        m[i], v[i], direction = adam(grad[i], m[i], v[i], constants)
        param[i] = shrink * param[i] - rate * direction


def adamw_update(
    param: DeviceArray,
    grad: DeviceArray,
    m: DeviceArray,
    v: DeviceArray,
    *,
    lr: float,
    decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """Move `param` and its moments `m` and `v`, in place, by one step: `ops.adamw_update` for float32.

    Raises:
        ValueError: if `param`, `m` or `v` is not C-contiguous.
    """
    check_alike(param=param, grad=grad, m=m, v=v)
    check_in_place(param=param, m=m, v=v)
    numbers = adam_constants(np.float32, beta1, beta2, eps, step, grad_scale)
    shrink, rate = np.float32(1 - lr * decay), np.float32(lr)
    adamw_all(blocks(param.size, THREADS), param, contiguous(grad), m, v, shrink, rate, numbers, param.size)
