"""What every kernel asks of its arguments before it runs: a kernel itself checks nothing.

Numba compiles anew for each dtype and each layout of an array; with these checks that is once for float32 and once for
float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace

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


def check_gradient(dout: NDArray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError unless `dout` has the shape and dtype of what `forward` returned."""
    if dout.shape != shape or dout.dtype != dtype:
        raise ValueError(f"dout must be {dtype} {shape} like the output, got {dout.dtype} {dout.shape}")


def contiguous(x: NDArray) -> NDArray:
    """`x` as it is if a kernel can walk through its memory, otherwise a copy in C order."""
    if x.flags.carray:
        return x
    copy = workspace.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def flat(x: NDArray) -> NDArray:
    """The entries of `x` in C order, 1-D: its own memory where possible, a copy otherwise."""
    return contiguous(x).reshape(-1)


def flat_in_place(**arrays: NDArray) -> list[NDArray]:
    """The memory of each array, 1-D, for a kernel that writes to it.

    Raises:
        ValueError: for one that is read-only or has gaps or another order in memory: it would not be written to.
    """
    for name, value in arrays.items():
        if not value.flags.carray:
            raise ValueError(
                f"{name} is updated in place and must be writeable and C-contiguous, got strides {value.strides} for "
                f"shape {value.shape}; hand over a copy: np.array({name}, order='C')"
            )
    return [value.reshape(-1) for value in arrays.values()]
