"""Arguments of operations: checked, since kernels check nothing, and as kernels take them; and arrays of constants.

Kernels that can read a view where it lies need no copy.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike

from tinyprune.kernels.cuda.device.array import FLOAT32, DeviceArray, copied, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.ops.add import check_same_shape

THREADS = 256


def check_floats(**arrays: DeviceArray | Sequence[DeviceArray]) -> None:
    """Raise ValueError unless all, or all of a list, are float32 in the GPU's memory. Messages use the keywords."""
    for name, value in arrays.items():
        if isinstance(value, list | tuple):
            check_floats(**{f"{name}[{i}]": x for i, x in enumerate(value)})
        elif not isinstance(value, DeviceArray):
            raise ValueError(
                f"{name} must be in the GPU's memory, got {type(value).__name__}; to_device copies it there"
            )
        elif value.dtype != FLOAT32:
            raise ValueError(f"{name} must be float32 for the cuda backend, got {value.dtype}")


def check_alike(**arrays: DeviceArray) -> None:
    """Raise ValueError unless all are float32, and of the shape of the first."""
    check_floats(**arrays)
    check_same_shape(**arrays)


def check_gradient(dout: DeviceArray, shape: tuple[int, ...], name: str = "dout") -> None:
    """Raise ValueError unless `dout`, called `name` in messages, is float32 of the output's shape."""
    check_floats(**{name: dout})
    if dout.shape != shape:
        raise ValueError(f"{name} must have shape {shape} like the output, got {dout.shape}")


def check_in_place(**arrays: DeviceArray) -> None:
    """Raise ValueError for an array that is not contiguous: a kernel would update a copy of it."""
    for name, value in arrays.items():
        if not value.contiguous:
            raise ValueError(
                f"{name} is updated in place and must be C-contiguous, got strides {value.strides} for shape "
                f"{value.shape}; hand over a copy"
            )


@kernel(floats, int32, float32, threads=THREADS)
def fill(x, size, value):
    """Set x[i] = value, flat."""
    i = cuda.grid(1)
    if i < size:
        x[i] = value


def contiguous(x: DeviceArray) -> DeviceArray:
    """Return `x` itself if it is contiguous and begins on a multiple of 16 bytes, otherwise a copy that does."""
    return x if x.first % 4 == 0 and x.contiguous else copied(x)


def by_rows(x: DeviceArray) -> tuple[DeviceArray, int]:
    """Return `x` and the entries from x[0] to x[1]; it is copied unless each x[b] is contiguous."""
    if x.size and not x[0].contiguous:
        x = copied(x)
    return x, x.strides[0]


def zeros(shape: int | tuple[int, ...]) -> DeviceArray:
    """Return an array of float32 zeros."""
    x = empty(shape)
    fill(blocks(x.size, THREADS), x, x.size, np.float32(0))
    return x


@lru_cache(512)
def on_device(values: tuple[float, ...], dtype: DTypeLike = np.float32) -> DeviceArray:
    """Copy numbers to the GPU's memory, where they stay: for what is the same in every step."""
    return to_device(np.array(values, dtype))
