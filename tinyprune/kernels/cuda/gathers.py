"""Parts of arrays by number, and products with a factor for each row. A thread for each entry of the result.

    pick          out[o, j, i] = x[o, index[j], i], or 0 where index[j] is −1       x (outer, n, inner)
    sum_shared    dx[row, k] = Σ dout[row, h] over the heads h with index[h] = k, in their order
    scale_rows    out[…, r, i] = factors[r] · x[…, r, i]

See `tinyprune.ops.slices`, `repeat_heads`, `rows` and `head_networks`. `pick` computes `take_slices`, and also
`put_slices`, with an index that maps each slice of the result to one of the part, or to −1: so every entry is written
once. A training step with closed heads calls both for ten arrays a layer, always with the same few indices, which are
copied to the GPU's memory only once.

In head networks the gates multiply the values pv, which are few, and not the units, of which there is one for each
position.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda import sums
from tinyprune.kernels.cuda.arguments import THREADS, check_alike, check_floats, check_in_place, contiguous, on_device
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty, to_device
from tinyprune.kernels.cuda.device.instructions import divmod32
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel
from tinyprune.ops.head_networks import check_units
from tinyprune.ops.repeat_heads import check_sum_heads
from tinyprune.ops.rows import check_factors, check_row_dots
from tinyprune.ops.slices import check_index, check_part, slice_count


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS)
def pick(x, index, n, picked, inner, size, out):
    """Set out (outer, picked, inner), of `size` entries, from x (outer, n, inner), both flat, by index (picked,)."""
    i = cuda.grid(1)
    if i < size:
        rest, entry = divmod32(i, inner)
        outer, j = divmod32(rest, picked)
        h = index[j]
        out[i] = x[(outer * n + h) * inner + entry] if h >= 0 else float32(0)


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS)
def sum_shared(dout, index, H, K, Dh, size, dx):
    """Set dx (rows, K, Dh) from dout (rows, H, Dh), both flat: the sums over the heads h with index[h] = k."""
    i = cuda.grid(1)
    if i < size:
        rest, d = divmod32(i, Dh)
        row, k = divmod32(rest, K)
        total = float32(0)
        for h in range(H):
            if index[h] == k:
                total += dout[(row * H + h) * Dh + d]
        dx[i] = total


@kernel(floats, floats, floats, int32, int32, int32, int32, floats, threads=THREADS)
def scale_rows(x, factors, r, rectified, R, width, size, out):
    """Set out[…, row, i] = factors[row] · x[…, row, i], flat, with `width` entries i for each of R rows.

    rectified: whether out is multiplied by 1 where the array r, of the same shape, is positive, and by 0 elsewhere.
    """
    i = cuda.grid(1)
    if i < size:
        product = factors[i // width % R] * x[i]
        if rectified:
            product *= float32(1) if r[i] > float32(0) else float32(0)
        out[i] = product


def picked(x: DeviceArray, index: Sequence[int], axis: int, n: int, width: int) -> DeviceArray:
    """Return the slices of `index`, zeros for −1, along an axis of n slices of `width` entries."""
    shape = x.shape
    out = empty((*shape[:axis], len(index) * width, *shape[axis + 1 :]))
    inner = width * math.prod(shape[axis + 1 :])
    numbers = on_device(tuple(map(int, index)), np.int32)
    pick(blocks(out.size, THREADS), contiguous(x), numbers, n, len(index), inner, out.size, out)
    return out


def take_slices(x: DeviceArray, index: Sequence[int], axis: int, width: int = 1) -> DeviceArray:
    """Return the slices of `index`, in this order: `ops.take_slices` for float32."""
    check_floats(x=x)
    n = slice_count("x", x, axis, width)
    check_index(index, n)
    return picked(x, index, axis, n, width)


def put_slices(part: DeviceArray, index: Sequence[int], axis: int, n: int, width: int = 1) -> DeviceArray:
    """Return zeros, except for the slices of `index`: `ops.put_slices` for float32."""
    check_floats(part=part)
    check_part(part, index, axis, width)
    check_index(index, n)
    source = np.full(n, -1)  # the slice of `part` for each slice of the result
    source[list(index)] = np.arange(len(index))
    return picked(part, source, axis, len(index), width)


def sum_heads(x: DeviceArray, index: Sequence[int] | NDArray, K: int) -> DeviceArray:
    """Sum the heads that share a key or value, as `ops.sum_heads`, for float32."""
    check_floats(x=x)
    check_sum_heads(x, index, K)
    B, S, H, Dh = x.shape
    out, numbers = empty((B, S, K, Dh)), on_device(tuple(map(int, index)), np.int32)
    sum_shared(blocks(out.size, THREADS), contiguous(x), numbers, H, K, Dh, out.size, out)
    return out


def scaled(x: DeviceArray, factors: NDArray | DeviceArray, width: int, r: DeviceArray | None = None) -> DeviceArray:
    """Multiply each `width` entries of x in turn by the next factor; if r is given, by 0 where it is not positive."""
    out = empty(x.shape)
    factors = contiguous(to_device(factors))
    scale_rows(blocks(x.size, THREADS), contiguous(x), factors, r, r is not None, factors.size, width, x.size, out)
    return out


def multiply_rows(x: DeviceArray, factors: NDArray | DeviceArray) -> DeviceArray:
    """Multiply each row by its factor, as `ops.multiply_rows`, for float32; factors may be in main memory."""
    check_floats(x=x)
    check_factors(x, factors)
    return scaled(x, factors, math.prod(x.shape[1:]))


def row_dots(x: DeviceArray, y: DeviceArray, factor: float = 1.0) -> DeviceArray:
    """Return the sum of products of each row, as `ops.row_dots`, for float32."""
    check_alike(x=x, y=y)
    check_row_dots(x, y)
    rows = len(x), 1, math.prod(x.shape[1:])
    pair = contiguous(x).reshape(rows), contiguous(y).reshape(rows)
    return sums.row_dots(pair, factor=np.float32(factor))[0][0]


def units_gradient(
    products: DeviceArray, r: DeviceArray, weights: NDArray | DeviceArray, scale: float, *, relu: bool = True
) -> tuple[DeviceArray, DeviceArray]:
    """Return the gradients of units and gates where parameters are frozen, as `ops.units_gradient`, for float32."""
    check_floats(products=products, r=r)
    check_units(products, r, weights)
    H = len(weights)
    N = r.shape[-1] // max(H, 1)
    by_head = math.prod(r.shape[:-1]), H, N
    products, r = contiguous(products), contiguous(r)
    (dots,) = sums.row_dots((r.reshape(by_head), products.reshape(by_head)), factor=np.float32(scale))
    return scaled(products, weights, N, r if relu else None), sums.row_sums(dots)


def set_rows(x: DeviceArray, rows: DeviceArray) -> None:
    """Copy `rows` into `x`, a view without gaps, as `ops.set_rows`; float32."""
    check_alike(x=x, rows=rows)
    check_in_place(x=x)
    copied(rows, x)
