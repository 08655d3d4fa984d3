"""Norms of parameters' gradients, and updates: AdamW of all parameters, LAMB of one. See `tinyprune.ops.norm`,
`tinyprune.ops.clipping`, `tinyprune.ops.adamw` and `tinyprune.ops.lamb`.

A launch takes Python longer than a small array takes the GPU, and a model has hundreds of parameters. So one launch has
many arrays. It reads a table of their addresses, and for each block which array it works on, and from which entry on.

A norm is the sum of x[i]², in float64 on purpose: the square of a float32 may overflow float32. For a norm alone,
Python adds the blocks' sums after one copy from the GPU's memory, for which it waits. For clipping one more block adds
them, and norm and factor stay in the GPU's memory, where the update reads the factor.

    for i: g = grad_scale · grad[i];  update m[i], v[i] with g, g²;  d[i] = m̂ / (√v̂ + eps) + decay · θ[i]
    AdamW  θ[i] −= lr · d[i]
    LAMB   θ[i] −= lr · ‖θ‖ / ‖d‖ · d[i]

The formula of m, v and m̂ / (√v̂ + eps) is `formulas.adam`, as on the CPU; here the compiler may round a product and a
sum once instead of twice. AdamW reads four arrays and writes three in one launch. LAMB has three passes; before the
last, one block computes lr · ‖θ‖ / ‖d‖ in float64. If grad_scale is NaN (see `ops.clipping`), nothing is updated.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numba import float64, types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import (
    check_alike,
    check_floats,
    check_gradient,
    check_in_place,
    contiguous,
    on_device,
)
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.sums import block_sum
from tinyprune.ops.adamw import AdamConstants

THREADS = 256
BLOCK_ENTRIES = 32 * THREADS  # entries of one array that a block works on
doubles, tables = types.CPointer(float64), types.CPointer(floats)  # a table is an array of pointers to arrays
adam_constants = types.UniTuple(float32, 8)  # of `formulas.adam_constants`
adam = device(formulas.adam)


@kernel(tables, ints, ints, ints, doubles, threads=THREADS, float64=True)
def squares(arrays, owners, begins, sizes, sums):
    """Compute sums[block] = Σ x[i]² over the entries of a block: of x = arrays[owners[block]] from begins[block] on."""
    scratch = cuda.shared.array(THREADS, float64)
    block, thread = cuda.blockIdx.x, cuda.threadIdx.x
    begin, size = begins[block], sizes[owners[block]]
    x = arrays[owners[block]]
    total = float64(0)
    for i in range(begin + thread, min(begin + BLOCK_ENTRIES, size), THREADS):
        value = float64(x[i])
        total += value * value
    total = block_sum(total, scratch)
    if thread == 0:
        sums[block] = total


@device
def two_sums(sums, middle, end, scratch):
    """Return Σ sums[: middle] and Σ sums[middle : end] to all threads of a block."""
    first, second = float64(0), float64(0)
    for i in range(cuda.threadIdx.x, middle, THREADS):
        first += sums[i]
    for i in range(middle + cuda.threadIdx.x, end, THREADS):
        second += sums[i]
    return block_sum(first, scratch), block_sum(second, scratch)


@kernel(doubles, int32, int32, float64, doubles, floats, threads=THREADS, float64=True)
def clipping_factor(sums, grad_sums, all_sums, max_norm, norm, factor):
    """Compute norm[0] and factor[0] from sums of squares: `grad_sums` of gradients, the others of losses. One block."""
    total, of_losses = two_sums(sums, grad_sums, all_sums, cuda.shared.array(THREADS, float64))
    if cuda.threadIdx.x == 0:
        length = math.sqrt(total)
        norm[0] = length
        if not math.isfinite(total + of_losses + max_norm):
            factor[0] = math.nan
        elif 0 < max_norm < length:
            factor[0] = max_norm / length
        else:
            factor[0] = float32(1)


def address_table(arrays: Sequence[DeviceArray]) -> DeviceArray:
    """Return an argument of type `tables`, for contiguous arrays. They must not be freed before the launch."""
    return to_device(np.array([x.pointer for x in arrays], np.uint64).view(np.int32))


@lru_cache(256)
def blocks_of(sizes: tuple[int, ...]) -> tuple[list[tuple[int, int]], DeviceArray, DeviceArray, DeviceArray]:
    """Distribute arrays of these sizes over blocks.

    Returns:
        places: for each array, its first block and the first one of the next array.
        owners, begins: for each block, the index of its array, and its first entry in this array.
        sizes: on the device.
    """
    counts = [blocks(size, BLOCK_ENTRIES) for size in sizes]
    owners = np.repeat(np.arange(len(sizes)), counts)
    begins = np.concatenate([np.arange(count) * BLOCK_ENTRIES for count in counts]) if counts else owners
    places = list(pairwise(accumulate(counts, initial=0)))
    return places, *(to_device(np.asarray(numbers, np.int32)) for numbers in (owners, begins, sizes))


def sum_squares(arrays: Sequence[DeviceArray]) -> tuple[DeviceArray, list[tuple[int, int]]]:
    """Return the sums of squares of all blocks, in float64, and for each array its first and end in them."""
    places, owners, begins, sizes = blocks_of(tuple(x.size for x in arrays))
    sums = empty(owners.size, np.float64)
    packed = [contiguous(x) for x in arrays]
    squares(owners.size, address_table(packed), owners, begins, sizes, sums)
    return sums, places


def squared_norms(arrays: Sequence[DeviceArray]) -> list[float]:
    """Compute ‖x‖² of each array, in float64: `ops.squared_norms` for float32. Waits once for the GPU."""
    check_floats(arrays=arrays)
    sums, places = sum_squares(arrays)
    values = to_host(sums)
    return [float(values[first:end].sum()) for first, end in places]


def clipping(
    grads: Sequence[DeviceArray], losses: Sequence[float | DeviceArray], *, max_norm: float
) -> tuple[DeviceArray, DeviceArray]:
    """Compute the joint norm, in float64, and the clipping factor: `ops.clipping` for float32. Waits for nothing.

    Losses are numbers, or arrays of shape () in the GPU's memory.
    """
    check_floats(grads=grads)
    on_gpu = [loss for loss in losses if isinstance(loss, DeviceArray)]
    finite = all(math.isfinite(loss) for loss in losses if not isinstance(loss, DeviceArray))
    sums, places = sum_squares([*grads, *on_gpu])
    norm, factor = empty((), np.float64), empty(())
    grad_sums = places[len(grads)][0] if on_gpu else sums.size
    clipping_factor(1, sums, grad_sums, sums.size, max_norm if finite else math.nan, norm, factor)
    return norm, factor


@kernel(tables, int32, ints, ints, ints, float32, floats, floats, floats, adam_constants, threads=THREADS)
def adamw_all(arrays, count, owners, begins, sizes, lr, multipliers, decays, scale, constants):
    """Update `count` params and their m and v, flat. arrays: all params, then all grads, all m, all v."""
    block = cuda.blockIdx.x
    n, begin = owners[block], begins[block]
    param, grad, m, v = arrays[n], arrays[count + n], arrays[2 * count + n], arrays[3 * count + n]
    rate, factor = lr * multipliers[n], scale[0]
    shrink = float32(1) - rate * decays[n]
    if factor == factor:  # not NaN
        for i in range(begin + cuda.threadIdx.x, min(begin + BLOCK_ENTRIES, sizes[n]), THREADS):
            m[i], v[i], direction = adam(factor * grad[i], m[i], v[i], constants)
            param[i] = shrink * param[i] - rate * direction


def scale_and_constants(constants: AdamConstants) -> tuple[DeviceArray, tuple]:
    """Return the factor of the gradients, for a kernel to read, and `adam_constants` with 1 in its place."""
    scale = constants.grad_scale
    if isinstance(scale, DeviceArray):
        check_gradient(scale, (), "grad_scale")
    else:
        scale = on_device((scale,))
    return scale, formulas.adam_constants(np.float32, *constants._replace(grad_scale=1.0))


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
    _, owners, begins, sizes = blocks_of(tuple(param.size for param in params))
    adamw_all(
        owners.size, address_table([*params, *grads, *ms, *vs]), len(params), owners, begins, sizes, np.float32(lr),
        on_device(tuple(multipliers)), on_device(tuple(decays)), *scale_and_constants(constants),
    )  # fmt: skip


@kernel(floats, floats, floats, floats, float32, floats, adam_constants, int32, floats, threads=THREADS)
def lamb_direction(param, grad, m, v, decay, scale, constants, size, d):
    """Update m and v, and compute the direction d. All flat; if scale[0] is NaN, d is 0, and m and v stay."""
    i, factor = cuda.grid(1), scale[0]
    if i < size:
        d[i] = float32(0)
        if factor == factor:
            m[i], v[i], direction = adam(factor * grad[i], m[i], v[i], constants)
            d[i] = direction + decay * param[i]


@kernel(doubles, int32, float64, floats, threads=THREADS, float64=True)
def lamb_rate(sums, count, lr, rate):
    """Compute rate[0] = lr · ‖θ‖ / ‖d‖, or lr if a norm is 0, from `count` sums of squares for each. One block."""
    of_param, of_d = two_sums(sums, count, 2 * count, cuda.shared.array(THREADS, float64))
    if cuda.threadIdx.x == 0:
        if of_param == 0 or of_d == 0:
            rate[0] = lr
        else:
            rate[0] = lr * (math.sqrt(of_param) / math.sqrt(of_d))


@kernel(floats, floats, floats, int32, threads=THREADS)
def lamb_step(param, d, rate, size):
    """Subtract rate[0] · d from param, both flat."""
    i = cuda.grid(1)
    if i < size:
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
    scale, values = scale_and_constants(constants)
    lamb_direction(grid, param, contiguous(grad), m, v, np.float32(decay), scale, values, size, d)
    sums, ((_, count), _) = sum_squares([param, d])
    lamb_rate(1, sums, count, lr, rate)
    lamb_step(grid, param, d, rate, size)
