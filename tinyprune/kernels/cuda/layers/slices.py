"""Slices: the parts of a parameter that belong to some heads, taken out and put back. See `tinyprune.ops.slices`.

    for o, j, i:  out[o, j, i] = x[o, index[j], i], or 0 where index[j] is −1       x (outer, n, inner)

inner is the contiguous part of a head. This is `take_slices`. With an index that maps each slice of the whole to one of
the part, or to −1, it is `put_slices`, so every entry is written once. One thread for each entry of out.

A training step with closed heads does both for ten arrays a layer, always with the same few indices, which are copied
to the GPU's memory only once.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.instructions import divided
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.slices import check_index, check_part, slice_count

THREADS = 256
REMEMBERED = 256  # indices kept on the device, of a few numbers each


@kernel(floats, ints, int32, int32, int32, int32, floats, threads=THREADS)
def pick(x, index, n, picked, inner, size, out):
    """out (outer, picked, inner) from x (outer, n, inner), both flat, by index (picked,)."""
    i = cuda.grid(1)
    if i < size:
        rest, entry = divided(i, inner)
        outer, j = divided(rest, picked)
        h = index[j]
        out[i] = x[(outer * n + h) * inner + entry] if h >= 0 else float32(0)


@lru_cache(REMEMBERED)
def on_device(index: tuple[int, ...]) -> DeviceArray:
    """Copy an index to the GPU's memory."""
    return to_device(np.array(index, np.int32))


def picked(x: DeviceArray, index: Sequence[int], axis: int, n: int, width: int) -> DeviceArray:
    """Run `pick` along an axis of n slices of `width` entries."""
    shape = x.shape
    out = empty((*shape[:axis], len(index) * width, *shape[axis + 1 :]))
    inner = width * math.prod(shape[axis + 1 :])
    numbers = on_device(tuple(map(int, index)))
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
    owner = np.full(n, -1)
    owner[list(index)] = np.arange(len(index))
    return picked(part, owner, axis, len(index), width)
