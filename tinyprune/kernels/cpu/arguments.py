"""Checks and conversions of arguments before a kernel runs; a kernel itself checks nothing.

Numba compiles a kernel for each dtype and memory layout that it meets; with these checks that is once for float32 and
once for float64.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.ops.add import check_same_shape

FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}


def check_floats(**arrays: NDArray | None) -> None:
    """Raise ValueError unless all are float32, or all float64, but for None. Messages use the keyword names."""
    (first, like), *_ = arrays.items()
    dtype = like.dtype
    if dtype not in FLOATS:
        raise ValueError(
            f"{first} must be float32 or float64 for a compiled kernel, got {dtype}; the numpy backend takes others"
        )
    for name, value in arrays.items():
        if value is not None and value.dtype != dtype:
            raise ValueError(f"{name} must have the dtype of {first}, {dtype}, got {value.dtype}")


def check_alike(**arrays: NDArray) -> None:
    """Raise ValueError unless all have the shape and dtype of the first, float32 or float64."""
    first, *others = arrays.values()
    shape, dtype = first.shape, first.dtype
    for other in others:
        if other.shape != shape or other.dtype != dtype:
            break
    else:
        if dtype in FLOATS:
            return
    check_same_shape(**arrays)
    check_floats(**arrays)


def check_gradient(dout: NDArray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError unless `dout` has the shape and dtype of what `forward` returned."""
    if dout.shape != shape or dout.dtype != dtype:
        raise ValueError(f"dout must be {dtype} {shape} like the output, got {dout.dtype} {dout.shape}")


def contiguous(x: NDArray) -> NDArray:
    """Return `x` itself if it is writeable, aligned and C-contiguous, as kernels expect, otherwise such a copy."""
    if x.flags.carray:
        return x
    copy = workspace.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def flat(x: NDArray) -> NDArray:
    """Return the entries of `x` in C order, 1-D: a view where possible, otherwise a copy."""
    return x.ravel() if x.flags.carray else contiguous(x).ravel()


def by_rows(x: NDArray) -> tuple[NDArray, int] | None:
    """Return the memory of `x`, 1-D and without a copy, and the distance from each x[i] to the next in entries.

    None unless every x[i] is contiguous and they follow one another. Gaps between them are part of the memory; do not
    write to it.
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


def for_update(param: NDArray, grad: NDArray, **state: NDArray) -> tuple[NDArray, ...]:
    """Flat views of `param`, `grad` and an optimizer's `state`, for a kernel that updates all but `grad` in place.

    Raises:
        ValueError: if shapes or dtypes differ, or one that is updated is read-only or not C-contiguous.
    """
    check_alike(param=param, grad=grad, **state)
    for name, x in {"param": param, **state}.items():
        if not x.flags.carray:  # `ravel` would copy it
            raise ValueError(
                f"{name} is updated in place and must be writeable and C-contiguous, got strides {x.strides} for "
                f"shape {x.shape}; hand over a copy: np.array({name}, order='C')"
            )
    return param.ravel(), flat(grad), *[x.ravel() for x in state.values()]
