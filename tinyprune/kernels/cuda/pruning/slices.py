"""Slices: what some heads own of a parameter, taken out of it and put back. See `tinyprune.ops.slices`.

    for o, j, i:  out[o, j, i] = x[o, index[j], i], or 0 where index[j] is −1       x (outer, n, inner)

inner is what a head has in one piece. That is `take_slices`, and with the index of the part's slice for each slice of
the whole, −1 for none, it is `put_slices`: everything is written once. One thread for each entry of out.

A step of a model with closed heads does both for ten arrays in each layer, with few and always the same numbers: what
is in the GPU's memory already is not copied there again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel, uint32
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.slices import check_index, check_part, slice_count

THREADS = 256
REMEMBERED = 256  # indices, of a few numbers each


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS)
def pick(x, index, n, picked, inner, size, out):
    """out (outer, picked, inner) from x (outer, n, inner), both flat, by index (picked,)."""
    i = cuda.grid(1)
    if i < size:
        # 32 bits, without a sign: Numba would divide in 64, some four times the work
        rest = uint32(i) // uint32(inner)
        outer = int32(rest // uint32(picked))
        h = index[int32(rest % uint32(picked))]
        if h < 0:
            out[i] = float32(0)
        else:
            out[i] = x[(outer * n + h) * inner + int32(uint32(i) % uint32(inner))]


@lru_cache(REMEMBERED)
def on_device(index: tuple[int, ...]) -> DeviceArray:
    """These numbers in the GPU's memory."""
    return to_device(np.array(index, np.int32))


def picked(x: DeviceArray, index: Sequence[int], axis: int, n: int, width: int) -> DeviceArray:
    """`pick` along an axis of n slices of so many entries."""
    shape = x.shape
    out = empty((*shape[:axis], len(index) * width, *shape[axis + 1 :]))
    inner = width * math.prod(shape[axis + 1 :])
    numbers = on_device(tuple(map(int, index)))
    pick(blocks(out.size, THREADS), contiguous(x), numbers, n, len(index), inner, out.size, out)
    return out


def take_slices(x: DeviceArray, index: Sequence[int], axis: int, width: int = 1) -> DeviceArray:
    """The slices of these numbers, in this order: `ops.take_slices` for float32."""
    check_floats(x=x)
    n = slice_count("x", x, axis, width)
    check_index(index, n)
    return picked(x, index, axis, n, width)


def put_slices(part: DeviceArray, index: Sequence[int], axis: int, n: int, width: int = 1) -> DeviceArray:
    """Zeros, but for the slices of these numbers: `ops.put_slices` for float32."""
    check_floats(part=part)
    check_part(part, index, axis, width)
    check_index(index, n)
    owner = np.full(n, -1)
    owner[list(index)] = np.arange(len(index))
    return picked(part, owner, axis, len(index), width)
