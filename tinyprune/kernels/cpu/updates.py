"""Updates of parameters: squared norms, a step of AdamW and of scales. See `tinyprune.ops.norm`, `adamw`, `scales`.

    squared_norm   for i: sum += x[i]²                                                          in float64
    AdamW          for i: m[i], v[i] take in g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])

In a plain sum each addition waits for the one before. Here there are 256 sums, which LLVM turns into vectors and which
are added at the end. An array is cut into blocks of one size, whatever the number of threads, and the sums of the
blocks are added in order.

AdamW is memory-bound: it reads four arrays and writes three in one pass, where NumPy makes some fifteen. All constants
have the arrays' type: with a float64 among them it would be computed in float64.

Scales are updated block by block, three times over 32 weights that are still in the cache; neighbouring blocks share
their cache lines. NumPy takes 1.0 s for the 85 million weights of SmolLM2 without a fifth, this 0.3 s (2 cores).
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
from tinyprune.ops.scales import BLOCK, TINIEST, check_moments

COLUMNS = 256  # sums at once
constants_of = kernel(formulas.adam_constants)
adam = kernel(formulas.adam)
TINY = np.float32(TINIEST)


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


@loop_kernel
def update_blocks(param, grad, m, v, numbers, columns, lr, decay, beta1, beta2, eps, step, grad_scale):
    """Update scales, or with two `numbers` offsets too, of the blocks of a matrix with these columns. All 1-D."""
    constants = constants_of(param.dtype.type, beta1, beta2, eps, step, grad_scale)
    shrink, rate = param.dtype.type(1 - lr * decay), param.dtype.type(lr)
    zero, share, blocks = param.dtype.type(0), param.dtype.type(1 / BLOCK), m.size // numbers
    for block in prange(blocks):
        first = block // columns * columns * BLOCK + block % columns
        end = first + columns * BLOCK
        mean, squares, dscale, doffset, offset = zero, zero, zero, zero, zero
        if numbers == 2:
            for i in range(first, end, columns):
                mean += param[i] * share
        for i in range(first, end, columns):
            n = param[i] - mean
            squares += n * n
            dscale += n * grad[i]
            doffset += grad[i]
        scale = max(math.sqrt(squares * share), TINY)
        m[block], v[block], direction = adam(dscale / scale, m[block], v[block], constants)
        if numbers == 2:
            other = blocks + block
            m[other], v[other], offset = adam(doffset, m[other], v[other], constants)
        direction /= scale
        for i in range(first, end, columns):
            param[i] = shrink * param[i] - rate * (direction * (param[i] - mean) + offset)


def scales_update(
    param: NDArray, grad: NDArray, m: NDArray, v: NDArray, *, lr: float, decay: float, constants: AdamConstants
) -> None:
    """Update scales, as `ops.scales_update`; float32 or float64. Raises ValueError as `adamw_updates`, too."""
    if m.shape == param.shape:
        adamw_updates([param], [grad], [m], [v], lr=lr, multipliers=[1.0], decays=[decay], constants=constants)
        return
    check_moments(param, grad, m, v)
    check_floats(param=param, m=m)
    given, (moments, _, squares) = for_update(param, grad), for_update(m, m, v=v)
    if not math.isnan(constants.grad_scale):
        update_blocks(
            param.size, *given, moments, squares, len(m), param.shape[1], *map(float, (lr, decay, *constants))
        )
