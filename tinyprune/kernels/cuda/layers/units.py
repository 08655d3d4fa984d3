"""What the networks of heads need beside products: values times gates, and the gradients of both. See
`tinyprune.ops.rows` and `tinyprune.ops.head_networks`.

The gates multiply the values, which are few, and not the units, one for each position.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts import sums
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.head_networks import check_units
from tinyprune.ops.rows import check_factors, check_row_dots

THREADS = 256


@kernel(floats, floats, int32, int32, int32, floats, threads=THREADS)
def weigh(x, factors, R, width, size, out):
    """Set out[…, r, i] = factors[r] · x[…, r, i], flat, with `width` entries i for each of R rows."""
    i = cuda.grid(1)
    if i < size:
        out[i] = factors[i // width % R] * x[i]


@kernel(floats, floats, int32, threads=THREADS)
def rectify_gradient(da, r, size):
    """Multiply da by 1 where r > 0 and by 0 elsewhere, in place, flat."""
    i = cuda.grid(1)
    if i < size:
        da[i] *= float32(1) if r[i] > float32(0) else float32(0)


def weighed(x: DeviceArray, factors: NDArray | DeviceArray, width: int) -> DeviceArray:
    """Multiply each `width` entries of x in turn by the next factor."""
    out = empty(x.shape)
    factors = contiguous(to_device(factors))
    weigh(blocks(x.size, THREADS), contiguous(x), factors, factors.size, width, x.size, out)
    return out


def multiply_rows(x: DeviceArray, factors: NDArray | DeviceArray) -> DeviceArray:
    """Multiply each row by its factor, as `ops.multiply_rows`, for float32; factors may be in main memory."""
    check_floats(x=x)
    check_factors(x, factors)
    return weighed(x, factors, math.prod(x.shape[1:]))


def row_dots(x: DeviceArray, y: DeviceArray, factor: float = 1.0) -> DeviceArray:
    """Return the sum of products of each row, as `ops.row_dots`, for float32."""
    check_alike(x=x, y=y)
    check_row_dots(x, y)
    rows = len(x), math.prod(x.shape[1:])
    return sums.row_dots(contiguous(x).reshape(rows), contiguous(y).reshape(rows), np.float32(factor))


def units_gradient(
    products: DeviceArray, r: DeviceArray, weights: NDArray | DeviceArray, scale: float
) -> tuple[DeviceArray, DeviceArray]:
    """Return the gradients of units and gates where parameters are frozen, as `ops.units_gradient`, for float32."""
    check_floats(products=products, r=r)
    check_units(products, r, weights)
    H = len(weights)
    N = r.shape[-1] // max(H, 1)
    by_head = math.prod(r.shape[:-1]), H, N
    products, r = contiguous(products), contiguous(r)
    dgate = sums.column_sums(sums.row_dots(r.reshape(by_head), products.reshape(by_head), np.float32(scale)))
    da = weighed(products, weights, N)
    rectify_gradient(blocks(da.size, THREADS), da, r, da.size)
    return da, dgate
