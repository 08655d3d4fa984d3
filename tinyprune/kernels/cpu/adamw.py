"""One update of AdamW. See `tinyprune.ops.adamw`.

    for i: g = grad_scale · grad[i];  m[i], v[i] take in g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])

It is memory-bound: one pass reads four arrays and writes three, where NumPy makes some fifteen passes. All constants
have the arrays' type: with a float64 among them it would be computed in float64.
"""

import math
from collections.abc import Sequence

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu.arguments import SMALL, for_update
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.ops.adamw import AdamConstants

constants_of = kernel(formulas.adam_constants)
adam = kernel(formulas.adam)


@kernel
def direction(i, grad, m, v, constants):
    """Update m and v by the gradient of entry i and return m̂ / (√v̂ + eps)."""
    m[i], v[i], towards = adam(grad[i], m[i], v[i], constants)
    return towards


@parallel_kernel
def update(param, grad, m, v, lr, decay, beta1, beta2, eps, step, grad_scale):
    """Update param, m and v, all 1-D."""
    constants = constants_of(param.dtype.type, beta1, beta2, eps, step, grad_scale)
    shrink, rate = param.dtype.type(1 - lr * decay), param.dtype.type(lr)
    if param.size <= SMALL:
        for i in range(param.size):
            param[i] = shrink * param[i] - rate * direction(i, grad, m, v, constants)
    else:
        for i in prange(param.size):
            param[i] = shrink * param[i] - rate * direction(i, grad, m, v, constants)


def adamw_updates(
    params: Sequence[NDArray],
    grads: Sequence[NDArray],
    ms: Sequence[NDArray],
    vs: Sequence[NDArray],
    *,
    lr: float,
    multipliers: Sequence[float],
    decays: Sequence[float],
    constants: AdamConstants,
) -> None:
    """Update parameters, one after the other. As `ops.adamw_updates`; float32 or float64.

    Raises:
        ValueError: if a param, m or v is read-only or not C-contiguous.
    """
    numbers = tuple(map(float, constants))
    for param, grad, m, v, multiplier, decay in zip(params, grads, ms, vs, multipliers, decays, strict=True):
        given = for_update(param, grad, m=m, v=v)
        if not math.isnan(constants.grad_scale):
            update(*given, float(lr * multiplier), float(decay), *numbers)
