"""Updates of parameters: squared norms, one step of AdamW, one of LAMB. See `tinyprune.ops.adamw` and `lamb`.

    squared_norm   for i: sum += x[i]²                                                          in float64
    AdamW          for i: m[i], v[i] take in g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])
    LAMB           for i: m[i], v[i] take in g, g²;  d[i] = m̂ / (√v̂ + eps) + decay · θ[i]
                   for i: θ[i] −= lr · ‖θ‖ / ‖d‖ · d[i]

In a plain sum each addition waits for the one before. Here there are 256 sums, which LLVM turns into vectors and which
are added at the end. An array is cut into blocks of one size, whatever the number of threads, and the sums of the
blocks are added in order.

The updates are memory-bound: AdamW reads four arrays and writes three in one pass, where NumPy makes some fifteen. All
constants have the arrays' type: with a float64 among them it would be computed in float64. LAMB needs the norms before
its second pass, so d is stored; computing it again there takes a third longer.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import FLOATS, check_floats, flat, for_update
from tinyprune.kernels.cpu.jit import SMALL, kernel, loop_kernel
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.clipping import factor_of

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


def clipping(grads: Sequence[NDArray], losses: Sequence[float | np.inexact], *, max_norm: float) -> tuple[float, float]:
    """Compute the joint norm and the clipping factor, as `ops.clipping`."""
    return factor_of(squared_norms(grads), losses, max_norm)


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


@loop_kernel
def direct(param, grad, m, v, decay, beta1, beta2, eps, step, grad_scale, d):
    """Update m and v, and set d to the direction in which param moves. All 1-D."""
    constants = constants_of(param.dtype.type, beta1, beta2, eps, step, grad_scale)
    decay = param.dtype.type(decay)
    for i in prange(param.size):
        m[i], v[i], direction = adam(grad[i], m[i], v[i], constants)
        d[i] = direction + decay * param[i]


@loop_kernel
def move(param, d, rate):
    """Subtract rate · d from param, both 1-D."""
    rate = param.dtype.type(rate)
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
    direct(param.size, param, grad, m, v, *map(float, (decay, *constants)), d)
    param_norm, d_norm = (math.sqrt(sum_of_squares(x.size, x)) for x in (param, d))
    ratio = param_norm / d_norm if param_norm and d_norm else 1.0
    move(param.size, param, d, float(lr * ratio))
