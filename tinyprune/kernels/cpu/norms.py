"""LayerNorm and RMSNorm: one norm for every feature vector, then scale, and shift. See `tinyprune.ops.layernorm`.

    for each row: mean = Σ x / D;  std = sqrt(Σ (x − mean)² / D + eps);  out = (x − mean) / std · scale + bias

RMSNorm is the same with a mean and a bias of zero. A row stays in the first cache while it is read three times. Sums
use vector instructions: LLVM may not reorder a sum and would leave a plain loop scalar. Forward saves x and the mean
and 1 / std of each row; backward recomputes n, so nothing else of the size of x is stored. dscale and dbias are summed
over blocks of rows, then over the blocks.
"""

import math

import numpy as np
from numba import int64, prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, check_gradient, contiguous, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel
from tinyprune.kernels.cpu.simd import add, broadcast, lanes, load, muladd, multiply, store, subtract, total
from tinyprune.ops.layernorm import check_scale_and_bias
from tinyprune.ops.rmsnorm import check_scale

ROWS = 32  # rows of a block: one thread handles it, and sums its dscale and dbias


@kernel
def row_sum(x, at, D):
    """Sum x over the D entries from `at`."""
    L = lanes(x)
    whole = D - D % L
    s = broadcast(x, 0)
    for d in range(0, whole, L):
        s = add(s, load(x, at + d))
    result = total(s)
    for d in range(whole, D):
        result += x[at + d]
    return result


@kernel
def row_squares(x, at, D, mean):
    """Sum (x − mean)² over the D entries from `at`."""
    L = lanes(x)
    whole = D - D % L
    s, means = broadcast(x, 0), broadcast(x, mean)
    for d in range(0, whole, L):
        centred = subtract(load(x, at + d), means)
        s = muladd(centred, centred, s)
    result = total(s)
    for d in range(whole, D):
        centred = x[at + d] - mean
        result += centred * centred
    return result


@kernel
def normalise_rows(first, end, x, scale, bias, eps, centred, out, means, inverses):
    """Do the work of `normalise` for the rows first ≤ row < end: a call for each row would take a quarter longer."""
    D, L = scale.size, lanes(x)
    whole = D - D % L
    real = x.dtype.type
    one, size, eps = real(1), real(D), real(eps)  # with a plain 1, Numba would compute in float64
    for row in range(first, end):
        at = row * D
        mean = row_sum(x, at, D) / size if centred else real(0)
        inverse = one / math.sqrt(row_squares(x, at, D, mean) / size + eps)
        means[row], inverses[row] = mean, inverse
        mean_lanes, inverse_lanes = broadcast(x, mean), broadcast(x, inverse)
        for d in range(0, whole, L):
            n = multiply(subtract(load(x, at + d), mean_lanes), inverse_lanes)
            store(out, at + d, muladd(n, load(scale, d), load(bias, d)))
        for d in range(whole, D):
            out[at + d] = (x[at + d] - mean) * inverse * scale[d] + bias[d]


@loop_kernel
def normalise(x, scale, bias, eps, centred, out, means, inverses):
    """Compute out, and the mean, if it is `centred`, and 1 / std of each row. x and out are flat."""
    R = means.size
    for block in prange((R + ROWS - 1) // ROWS):
        first = int64(block) * ROWS
        normalise_rows(first, min(first + ROWS, R), x, scale, bias, eps, centred, out, means, inverses)


@kernel
def row_backward(dout, x, at, mean, inverse, scale, centred, dx, sums, sums_at):
    """Compute dx of one row, and add its dscale and dbias to the 2 D entries of `sums` from `sums_at`."""
    D, L = scale.size, lanes(x)
    whole = D - D % L
    dscale_at, dbias_at = sums_at, sums_at + D
    mean_lanes, inverse_lanes = broadcast(x, mean), broadcast(x, inverse)
    dn_sum, dn_n_sum = broadcast(x, 0), broadcast(x, 0)
    for d in range(0, whole, L):
        n = multiply(subtract(load(x, at + d), mean_lanes), inverse_lanes)
        g = load(dout, at + d)
        store(sums, dscale_at + d, muladd(g, n, load(sums, dscale_at + d)))
        store(sums, dbias_at + d, add(g, load(sums, dbias_at + d)))
        dn = multiply(g, load(scale, d))
        dn_sum = add(dn_sum, dn)
        dn_n_sum = muladd(dn, n, dn_n_sum)
    dn_mean, dn_n_mean = total(dn_sum), total(dn_n_sum)
    for d in range(whole, D):
        n = (x[at + d] - mean) * inverse
        g = dout[at + d]
        sums[dscale_at + d] += g * n
        sums[dbias_at + d] += g
        dn_mean += g * scale[d]
        dn_n_mean += g * scale[d] * n
    dn_mean = dn_mean / x.dtype.type(D) if centred else x.dtype.type(0)
    dn_n_mean /= x.dtype.type(D)
    # dx = (dn − dn_mean − n · dn_n_mean) / std
    dn_mean_lanes, minus_dn_n_mean_lanes = broadcast(x, dn_mean), broadcast(x, -dn_n_mean)
    for d in range(0, whole, L):
        n = multiply(subtract(load(x, at + d), mean_lanes), inverse_lanes)
        dn = multiply(load(dout, at + d), load(scale, d))
        dn = muladd(n, minus_dn_n_mean_lanes, subtract(dn, dn_mean_lanes))
        store(dx, at + d, multiply(dn, inverse_lanes))
    for d in range(whole, D):
        n = (x[at + d] - mean) * inverse
        dx[at + d] = (dout[at + d] * scale[d] - dn_mean - n * dn_n_mean) * inverse


@kernel
def block_backward(block, dout, x, means, inverses, scale, centred, dx, sums):
    """Compute dx of one block's rows and sum their dscale and dbias in `sums`."""
    D, R = scale.size, means.size
    first = 2 * D * block
    sums[first : first + 2 * D] = 0
    for row in range(block * ROWS, min((block + 1) * ROWS, R)):
        row_backward(dout, x, row * D, means[row], inverses[row], scale, centred, dx, sums, first)


@loop_kernel
def backward(dout, x, means, inverses, scale, centred, dx, sums, totals):
    """Compute dx, and dscale and dbias in `totals`; `sums` is scratch, 2 D entries for each block. All are flat."""
    D, R = scale.size, means.size
    blocks = (R + ROWS - 1) // ROWS
    for block in prange(blocks):
        block_backward(int64(block), dout, x, means, inverses, scale, centred, dx, sums)
    totals[:] = 0
    for block in range(blocks):
        part = sums[2 * D * block : 2 * D * (block + 1)]
        for d in range(2 * D):
            totals[d] += part[d]


def forward(x: NDArray, scale: NDArray, bias: NDArray, eps: float, centred: bool) -> tuple[NDArray, tuple]:
    """Normalise the rows of checked arrays; return the result and the cache."""
    x, scale, bias = contiguous(x), contiguous(scale), contiguous(bias)
    out = workspace.empty(x.shape, x.dtype)
    means, inverses = workspace.empty((2, math.prod(x.shape[:-1])), x.dtype)
    normalise(x.size, x.ravel(), scale, bias, float(eps), centred, out.ravel(), means, inverses)
    return out, (x, means, inverses, scale, centred)


def layernorm_forward(x: NDArray, scale: NDArray, bias: NDArray, eps: float = 1e-5) -> tuple[NDArray, tuple]:
    """Normalise the last axis of `x`, then scale and shift it. As `ops.layernorm_forward`; float32 or float64."""
    check_scale_and_bias(x, scale, bias)
    check_floats(x=x, scale=scale, bias=bias)
    return forward(x, scale, bias, eps, True)


def layernorm_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray, NDArray]:
    """Return the gradients of `layernorm_forward`, as `ops.layernorm_backward`."""
    x, means, inverses, scale, centred = cache
    check_gradient(dout, x.shape, x.dtype)
    D = scale.size
    dx, totals = workspace.empty(x.shape, x.dtype), workspace.empty(2 * D, x.dtype)
    sums = workspace.empty(2 * D * -(-means.size // ROWS), x.dtype)
    backward(x.size, flat(dout), x.ravel(), means, inverses, scale, centred, dx.ravel(), sums, totals)
    return dx, totals[:D], totals[D:]


def rmsnorm_forward(x: NDArray, scale: NDArray, eps: float = 1e-5) -> tuple[NDArray, tuple]:
    """Normalise the last axis of `x`, then scale it: `ops.rmsnorm_forward` for float32 or float64."""
    check_scale(x, scale)
    check_floats(x=x, scale=scale)
    return forward(x, scale, np.zeros_like(scale), eps, False)


def rmsnorm_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `rmsnorm_forward`, as `ops.rmsnorm_backward`."""
    return layernorm_backward(dout, cache)[:2]
