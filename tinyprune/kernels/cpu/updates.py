"""Updates of parameters: squared norms, and one step of AdamW. See `tinyprune.ops.norm` and `adamw`.

    squared_norm   for i: sum += x[i]²                                                          in float64
    AdamW          for i: m[i], v[i] take in g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])

In a plain sum each addition waits for the one before. Here there are 256 sums, which LLVM turns into vectors and which
are added at the end. An array is cut into blocks of one size, whatever the number of threads, and the sums of the
blocks are added in order.

AdamW is memory-bound: it reads four arrays and writes three in one pass, where NumPy makes some fifteen. All constants
have the arrays' type: with a float64 among them it would be computed in float64.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu.arguments import FLOATS, check_floats, flat, for_update
from tinyprune.kernels.cpu.jit import SMALL, kernel, loop_kernel
from tinyprune.ops.adamw import AdamConstants

COLUMNS = 256  # sums at once
constants_of = kernel(formulas.adam_constants)
adam = kernel(formulas.adam)


@kernel
def block_squares(x):
    """Sum x² of a flat x: first sums[j] = x[j]² + x[j + COLUMNS]² + …, then these."""
    sums = np.zeros(COLUMNS, np.float64)
    for start in range(0, x.size, COLUMNS):
        part = x[start : start + COLUMNS]
        for j in range(part.size):
            value = np.float64(part[j])
            sums[j] += value * value
    result = 0.0
    for j in range(COLUMNS):
        result += sums[j]
    return result


@loop_kernel
def sum_of_squares(x):
    """Sum x² of a flat x by blocks, whose sums are added in order."""
    blocks = (x.size + SMALL - 1) // SMALL
    sums = np.empty(blocks, np.float64)
    for block in prange(blocks):
        sums[block] = block_squares(x[block * SMALL : (block + 1) * SMALL])
    result = 0.0
    for block in range(blocks):
        result += sums[block]
    return result


def squared_norms(arrays: Sequence[NDArray]) -> list[float]:
    """Compute ‖x‖² over all entries of each array, in float64, as `ops.squared_norms`; float32 or float64."""
    for x in arrays:
        if x.dtype not in FLOATS:
            check_floats(x=x)
    return [sum_of_squares(x.size, flat(x)) for x in arrays]


@loop_kernel
def update(param, grad, m, v, lr, decay, beta1, beta2, eps, step, grad_scale):
    """Update param, m and v, all 1-D."""
    constants = constants_of(param.dtype.type, beta1, beta2, eps, step, grad_scale)
    shrink, rate = param.dtype.type(1 - lr * decay), param.dtype.type(lr)
    for i in prange(param.size):
        m[i], v[i], direction = adam(grad[i], m[i], v[i], constants)
        param[i] = shrink * param[i] - rate * direction


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
            update(param.size, *given, float(lr * multiplier), float(decay), *numbers)
