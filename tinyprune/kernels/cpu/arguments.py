"""What every kernel asks of its arguments before it runs: a kernel itself checks nothing.

Numba compiles anew for each dtype and each layout of an array; with these checks that is once for float32 and once for
float64.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.ops.add import check_same_shape

SMALL = 16384  # entries; for fewer, a second thread costs more than it saves
FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}


def check_floats(**arrays: NDArray) -> None:
    """Raise ValueError unless all are float32, or all float64; they are called by the names that they are given by."""
    (first, like), *_ = arrays.items()
    dtype = like.dtype
    if dtype not in FLOATS:
        raise ValueError(
            f"{first} must be float32 or float64 for a compiled kernel, got {dtype}; the numpy backend takes others"
        )
    for name, value in arrays.items():
        if value.dtype != dtype:
            raise ValueError(f"{name} must have the dtype of {first}, {dtype}, got {value.dtype}")


def alike(first: NDArray, *others: NDArray) -> bool:
    """Whether all have the shape and the dtype of the first, float32 or float64."""
    shape, dtype = first.shape, first.dtype
    for other in others:
        if other.shape != shape or other.dtype != dtype:
            return False
    return dtype in FLOATS


def check_alike(**arrays: NDArray) -> None:
    """Raise ValueError unless they are `alike`. (Asking that first is cheaper than giving them names.)"""
    check_same_shape(**arrays)
    check_floats(**arrays)


def check_gradient(dout: NDArray, shape: tuple[int, ...], dtype: np.dtype, name: str = "dout") -> None:
    """Raise ValueError unless `dout`, called `name`, has the shape and dtype of what `forward` returned."""
    if dout.shape != shape or dout.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} {shape} like the output, got {dout.dtype} {dout.shape}")


def contiguous(x: NDArray) -> NDArray:
    """`x` as it is if a kernel can walk through its memory, otherwise a copy in C order."""
    if x.flags.carray:
        return x
    copy = workspace.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def flat(x: NDArray) -> NDArray:
    """The entries of `x` in C order, 1-D: its own memory where possible, a copy otherwise."""
    return x.ravel() if x.flags.carray else contiguous(x).ravel()


def by_rows(x: NDArray) -> tuple[NDArray, int] | None:
    """The memory of `x`, 1-D, and how many entries lie from x[0] to x[1], from x[1] to x[2] and so on.

    None where that is not so: where an x[i] is not in one piece, or they are in another order. What lies between them
    is in the memory too; it is not to be written to.
    """
    if x.flags.carray:
        return x.ravel(), x.size // len(x) if x.size else 0
    if x.ndim < 2 or not x.flags.behaved or not x[0].flags.c_contiguous:
        return None
    step, rest = divmod(x.strides[0], x.itemsize)
    size = x[0].size
    if rest or step < size:
        return None
    return as_strided(x, ((len(x) - 1) * step + size,), (x.itemsize,)), step


def check_in_place(**arrays: NDArray) -> None:
    """Raise ValueError for one that is read-only or has gaps or another order in memory: `ravel` would copy it."""
    for name, value in arrays.items():
        if not value.flags.carray:
            raise ValueError(
                f"{name} is updated in place and must be writeable and C-contiguous, got strides {value.strides} for "
                f"shape {value.shape}; hand over a copy: np.array({name}, order='C')"
            )
