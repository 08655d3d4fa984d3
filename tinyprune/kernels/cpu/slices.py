"""Slices: what some heads own of a parameter, taken out of it and put back. See `tinyprune.ops.slices`.

    for o, i:  part[o, i] = x[o, index[i]]          x (outer, n, inner), a view: inner is what a head has in one piece
    for o, h:  x[o, h] = part[o, i] if h = index[i] else 0

`put_slices` writes everything once, where the textbook writes zeros first, and neither lists the indices of all
entries. Copies use vector instructions, and heads are the inner loop: of a loop along so short a run LLVM makes a call
of memcpy, which takes longer. A training step of a model with closed heads does both for ten arrays in each layer.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import kernel
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, store
from tinyprune.ops.slices import check_part, entries, slice_count


@kernel
def take(x, index, n, inner, taken):
    """Copy slices of x (outer, n, inner) to taken (outer, len(index), inner), flat; False if an index is invalid."""
    for h in index:
        if not 0 <= h < n:
            return False
    L = lanes(x)
    whole = inner - inner % L
    to = 0
    for at in range(0, x.size, max(n * inner, 1)):
        for d in range(0, whole, L):
            for i in range(index.size):
                store(taken, to + i * inner + d, load(x, at + index[i] * inner + d))
        for d in range(whole, inner):
            for i in range(index.size):
                taken[to + i * inner + d] = x[at + index[i] * inner + d]
        to += index.size * inner
    return True


@kernel
def put(taken, index, n, inner, x):
    """Copy taken (outer, len(index), inner) to slices of x (outer, n, inner), flat; False if an index is invalid."""
    owner = np.full(n, -1, np.int64)
    for i in range(index.size):
        if not 0 <= index[i] < n:
            return False
        owner[index[i]] = i
    L = lanes(x)
    whole = inner - inner % L
    zero = broadcast(x, 0)
    at = 0
    for to in range(0, x.size, max(n * inner, 1)):
        for d in range(0, whole, L):
            for h in range(n):
                value = zero if owner[h] < 0 else load(taken, at + owner[h] * inner + d)
                store(x, to + h * inner + d, value)
        for d in range(whole, inner):
            for h in range(n):
                x[to + h * inner + d] = 0 if owner[h] < 0 else taken[at + owner[h] * inner + d]
        at += index.size * inner
    return True


def take_slices(x: NDArray, index: Sequence[int] | NDArray, axis: int, width: int = 1) -> NDArray:
    """Take the slices `index`, in this order, as `ops.take_slices`; float32 or float64."""
    check_floats(x=x)
    n = slice_count("x", x, axis, width)
    places = np.ascontiguousarray(index, np.int64)
    part = workspace.empty((*x.shape[:axis], len(places) * width, *x.shape[axis + 1 :]), x.dtype)
    if not take(flat(x), places, n, width * math.prod(x.shape[axis + 1 :]), part.reshape(-1)):
        entries(index, n, width)  # says what is wrong
    return part


def put_slices(part: NDArray, index: Sequence[int] | NDArray, axis: int, n: int, width: int = 1) -> NDArray:
    """Put slices into zeros, as `ops.put_slices`; float32 or float64."""
    check_floats(part=part)
    check_part(part, index, axis, width)
    places = np.ascontiguousarray(index, np.int64)
    x = workspace.empty((*part.shape[:axis], n * width, *part.shape[axis + 1 :]), part.dtype)
    if not put(flat(part), places, n, width * math.prod(part.shape[axis + 1 :]), x.reshape(-1)):
        entries(index, n, width)  # says what is wrong
    return x
