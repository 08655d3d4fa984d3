"""One update of AdamW for all parameters, or of LAMB for one. See `tinyprune.ops.adamw` and `tinyprune.ops.lamb`.

    for i: g = grad_scale · grad[i];  update m[i], v[i] with g, g²;  d[i] = m̂ / (√v̂ + eps) + decay · θ[i]
    AdamW  θ[i] −= lr · d[i]
    LAMB   θ[i] −= lr · ‖θ‖ / ‖d‖ · d[i]

The formula of m, v and m̂ / (√v̂ + eps) is `formulas.adam`, as on the CPU; here the compiler may round a product and a
sum once instead of twice.

AdamW has one launch for all parameters: most are so small that launching takes longer than the work. A block has a run
of one parameter's numbers. In one pass four arrays are read and three written. LAMB has three passes, with a thread for
each number or, for the sums of θ² and d², a block for every `EACH`. Before the last, one block computes
lr · ‖θ‖ / ‖d‖ in float64. The norms stay in the GPU's memory, so Python does not wait for them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import float64, types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_gradient, check_in_place, contiguous
from tinyprune.kernels.cuda.updates.norm import (
    EACH,
    THREADS,
    division,
    doubles,
    sum_squares,
    table_of,
    tables,
    two_sums,
)
from tinyprune.ops.adamw import AdamConstants

numbers = types.UniTuple(float32, 8)  # of `adam_constants`
adam = device(formulas.adam)


@kernel(tables, int32, ints, ints, ints, float32, floats, floats, floats, numbers, threads=THREADS, hot=True)
def adamw_all(arrays, count, owners, begins, sizes, lr, multipliers, decays, scale, constants):
    """Update `count` params and their m and v, flat. arrays: all params, then all grads, all m, all v."""
    block = cuda.blockIdx.x
    n, begin = owners[block], begins[block]
    param, grad, m, v = arrays[n], arrays[count + n], arrays[2 * count + n], arrays[3 * count + n]
    rate, factor = lr * multipliers[n], scale[0]
    shrink = float32(1) - rate * decays[n]
    if factor == factor:  # not NaN
        for i in range(begin + cuda.threadIdx.x, min(begin + EACH, sizes[n]), THREADS):
            m[i], v[i], direction = adam(factor * grad[i], m[i], v[i], constants)
            param[i] = shrink * param[i] - rate * direction


@lru_cache(64)
def numbers_of(values: tuple[float, ...]) -> DeviceArray:
    """Copy numbers to the GPU's memory; they are the same in every step."""
    return to_device(np.array(values, np.float32))


def scale_of(grad_scale: float | DeviceArray) -> DeviceArray:
    """Return the factor of the gradients in the GPU's memory, where `clipping` leaves it."""
    if not isinstance(grad_scale, DeviceArray):
        return numbers_of((grad_scale,))
    check_gradient(grad_scale, (), "grad_scale")
    return grad_scale


def scale_and_constants(constants: AdamConstants) -> tuple[DeviceArray, tuple]:
    """Return the factor of the gradients, and `adam_constants` with 1 in its place."""
    return scale_of(constants.grad_scale), formulas.adam_constants(np.float32, *constants._replace(grad_scale=1.0))


def adamw_updates(
    params: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    ms: Sequence[DeviceArray],
    vs: Sequence[DeviceArray],
    *,
    lr: float,
    multipliers: Sequence[float],
    decays: Sequence[float],
    constants: AdamConstants,
) -> None:
    """Update parameters in one launch: `ops.adamw_updates` for float32.

    Raises:
        ValueError: if a param, m or v is not C-contiguous.
    """
    for param, grad, m, v, _, _ in zip(params, grads, ms, vs, multipliers, decays, strict=True):
        check_alike(param=param, grad=grad, m=m, v=v)
        check_in_place(param=param, m=m, v=v)
    grads = [contiguous(grad) for grad in grads]
    _, owners, begins, sizes = division(tuple(param.size for param in params))
    adamw_all(
        owners.size, table_of([*params, *grads, *ms, *vs]), len(params), owners, begins, sizes, np.float32(lr),
        numbers_of(tuple(multipliers)), numbers_of(tuple(decays)), *scale_and_constants(constants),
    )  # fmt: skip


@kernel(floats, floats, floats, floats, float32, floats, numbers, int32, floats, threads=THREADS, hot=True)
def direct(param, grad, m, v, decay, scale, constants, size, d):
    """Update m and v, and compute the direction d. All flat."""
    i, factor = cuda.grid(1), scale[0]
    if i < size and factor == factor:  # not NaN
        m[i], v[i], direction = adam(factor * grad[i], m[i], v[i], constants)
        d[i] = direction + decay * param[i]


@kernel(doubles, int32, float64, floats, threads=THREADS, float64=True)
def rate_of(sums, count, lr, rate):
    """Compute rate[0] = lr · ‖θ‖ / ‖d‖, or lr if one is 0, from as many sums of squares of the one as of the other."""
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
