"""One update of AdamW for all parameters. See `tinyprune.ops.adamw`.

    for i: g = grad_scale · grad[i];  update m[i], v[i] with g, g²;  θ[i] −= lr · (m̂ / (√v̂ + eps) + decay · θ[i])

One launch for all parameters: most are so small that launching takes longer than the work. A block has a run of one
parameter's numbers. In one pass four arrays are read and three written. The formula is `formulas.adam`, as on the CPU;
here the compiler may round a product and a sum once instead of twice.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.array import DeviceArray, to_device
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.device.many import EACH, THREADS, division, table_of, tables
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_in_place
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.formulas import adam_constants
from tinyprune.ops.adamw import AdamConstants

numbers = types.UniTuple(float32, 8)  # of `adam_constants`
adam = device(formulas.adam)


@kernel(tables, int32, ints, ints, ints, floats, floats, numbers, threads=THREADS, hot=True)
def adamw_all(arrays, count, owners, begins, sizes, shrinks, rates, constants):
    """Update `count` params and their m and v, flat. arrays: all params, then all grads, all m, all v."""
    block = cuda.blockIdx.x
    n, begin = owners[block], begins[block]
    param, grad, m, v = arrays[n], arrays[count + n], arrays[2 * count + n], arrays[3 * count + n]
    shrink, rate = shrinks[n], rates[n]
    for i in range(begin + cuda.threadIdx.x, min(begin + EACH, sizes[n]), THREADS):
        m[i], v[i], direction = adam(grad[i], m[i], v[i], constants)
        param[i] = shrink * param[i] - rate * direction


@lru_cache(64)
def numbers_of(values: tuple[float, ...]) -> DeviceArray:
    """Copy numbers to the GPU's memory; many are the same in every step."""
    return to_device(np.array(values, np.float32))


def adamw_updates(
    params: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    ms: Sequence[DeviceArray],
    vs: Sequence[DeviceArray],
    *,
    lrs: Sequence[float],
    decays: Sequence[float],
    constants: AdamConstants,
) -> None:
    """Update parameters in one launch: `ops.adamw_updates` for float32.

    Raises:
        ValueError: if a param, m or v is not C-contiguous.
    """
    for param, grad, m, v, _, _ in zip(params, grads, ms, vs, lrs, decays, strict=True):
        check_alike(param=param, grad=grad, m=m, v=v)
        check_in_place(param=param, m=m, v=v)
    grads = [contiguous(grad) for grad in grads]
    _, owners, begins, sizes = division(tuple(param.size for param in params))
    shrinks = numbers_of(tuple(1 - lr * decay for lr, decay in zip(lrs, decays, strict=True)))
    adamw_all(
        owners.size, table_of([*params, *grads, *ms, *vs]), len(params), owners, begins, sizes, shrinks,
        numbers_of(tuple(lrs)), adam_constants(np.float32, *constants),
    )  # fmt: skip
