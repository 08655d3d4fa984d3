"""RMSNorm: a root mean square of one for every feature vector, then scale it. See `tinyprune.ops.rmsnorm`.

    for each row: rms = sqrt(Σ x² / D + eps);  out = x / rms · scale

As in `layernorm`, whose sums of squares it uses: a row is read twice while it is in the nearest cache, backward keeps x
and 1 / rms of each row and recomputes n, and dscale is summed over blocks of rows, then over the blocks.
"""

import math

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, check_floats, check_gradient, contiguous, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.kernels.cpu.layernorm import ROWS, row_squares
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, multiply, number, store, total
from tinyprune.ops.rmsnorm import check_scale


@kernel
def normalise_rows(first, end, x, scale, eps, out, inverses):
    """Do the work of `normalise` for the rows first ≤ row < end."""
    D, L = scale.size, lanes(x)
    whole = D - D % L
    real = x.dtype.type
    one, zero, size, eps = real(1), real(0), real(D), real(eps)  # a plain 1 would make it float64
    for row in range(first, end):
        at = row * D
        inverse = one / math.sqrt(row_squares(x, at, D, zero) / size + eps)
        inverses[row] = inverse
        inverse_lanes = broadcast(x, inverse)
        for d in range(0, whole, L):
            store(out, at + d, multiply(multiply(load(x, at + d), inverse_lanes), load(scale, d)))
        for d in range(whole, D):
            out[at + d] = x[at + d] * inverse * scale[d]


@parallel_kernel
def normalise(x, scale, eps, out, inverses):
    """Compute out, and 1 / rms of each row. x and out are flat."""
    R = inverses.size
    if x.size < SMALL:
        normalise_rows(number(0), R, x, scale, eps, out, inverses)
    else:
        for block in prange((R + ROWS - 1) // ROWS):
            first = number(block) * ROWS
            normalise_rows(first, min(first + ROWS, R), x, scale, eps, out, inverses)


@kernel
def row_backward(dout, x, at, inverse, scale, dx, sums, sums_at):
    """Compute dx of one row, and add its dscale to the D entries of `sums` from `sums_at`."""
    D, L = scale.size, lanes(x)
    whole = D - D % L
    inverse_lanes, dn_n_sum = broadcast(x, inverse), broadcast(x, 0)
    for d in range(0, whole, L):
        n, g = multiply(load(x, at + d), inverse_lanes), load(dout, at + d)
        store(sums, sums_at + d, muladd(g, n, load(sums, sums_at + d)))
        dn_n_sum = muladd(multiply(g, load(scale, d)), n, dn_n_sum)
    dn_n_mean = total(dn_n_sum)
    for d in range(whole, D):
        n, g = x[at + d] * inverse, dout[at + d]
        sums[sums_at + d] += g * n
        dn_n_mean += g * scale[d] * n
    dn_n_mean /= x.dtype.type(D)
    # dx = (dn − n · dn_n_mean) / rms
    minus_mean_lanes = broadcast(x, -dn_n_mean)
    for d in range(0, whole, L):
        n, dn = multiply(load(x, at + d), inverse_lanes), multiply(load(dout, at + d), load(scale, d))
        store(dx, at + d, multiply(muladd(n, minus_mean_lanes, dn), inverse_lanes))
    for d in range(whole, D):
        dx[at + d] = (dout[at + d] * scale[d] - x[at + d] * inverse * dn_n_mean) * inverse


@kernel
def block_backward(block, dout, x, inverses, scale, dx, sums):
    """Compute dx of one block's rows and sum their dscale in `sums`."""
    D, R = scale.size, inverses.size
    sums[D * block : D * (block + 1)] = 0
    for row in range(block * ROWS, min((block + 1) * ROWS, R)):
        row_backward(dout, x, row * D, inverses[row], scale, dx, sums, D * block)


@parallel_kernel
def backward(dout, x, inverses, scale, dx, sums, dscale):
    """Compute dx and dscale; `sums` is scratch, D entries for each block of rows. All are flat."""
    D, R = scale.size, inverses.size
    blocks = (R + ROWS - 1) // ROWS
    if x.size < SMALL:
        for block in range(blocks):
            block_backward(block, dout, x, inverses, scale, dx, sums)
    else:
        for block in prange(blocks):
            block_backward(number(block), dout, x, inverses, scale, dx, sums)
    dscale[:] = 0
    for block in range(blocks):
        for d in range(D):
            dscale[d] += sums[D * block + d]


def rmsnorm_forward(x: NDArray, scale: NDArray, eps: float = 1e-5) -> tuple[NDArray, tuple]:
    """Normalise the last axis of `x`, then scale it: `ops.rmsnorm_forward` for float32 or float64."""
    check_scale(x, scale)
    check_floats(x=x, scale=scale)
    x, scale = contiguous(x), contiguous(scale)
    out, inverses = workspace.empty(x.shape, x.dtype), workspace.empty(math.prod(x.shape[:-1]), x.dtype)
    normalise(x.ravel(), scale, float(eps), out.ravel(), inverses)
    return out, (x, inverses, scale)


def rmsnorm_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `rmsnorm_forward`, as `ops.rmsnorm_backward`."""
    x, inverses, scale = cache
    check_gradient(dout, x.shape, x.dtype)
    D = scale.size
    dx, dscale = workspace.empty(x.shape, x.dtype), workspace.empty(D, x.dtype)
    sums = workspace.empty(D * -(-inverses.size // ROWS), x.dtype)
    backward(flat(dout), x.ravel(), inverses, scale, dx.ravel(), sums, dscale)
    return dx, dscale
