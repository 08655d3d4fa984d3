"""Arrays in the GPU's memory: the part of NumPy's interface that the model needs, without arithmetic.

Entries are float32; or int32, for token and row numbers; or float64, for sums, whose arrays have no views. `x[2:5]`,
`x[:, -3:]`, `x[1]`, `x.T` and `x.reshape(…)` of a contiguous array are views: nothing is copied. An operation whose
kernel needs contiguous memory copies a view first.

    x = to_device(array)        a copy in the GPU's memory
    array = to_host(x)          a copy in main memory, after the kernels launched before have finished
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.memory import Storage

MOST = 2**31 - 1  # entries of an array: sizes are int32 in kernels
THREADS, AXES = 256, 4  # threads of a block of `gather`, and axes that it takes
FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


@dataclass(eq=False, repr=False, slots=True)
class DeviceArray:
    """A strided view of some of the GPU's memory.

    Attributes:
        storage: the memory, which views share.
        first: index in it of the array's first entry.
        shape: as in NumPy.
        strides: in *entries*, for each axis.
        dtype: float32, int32 or float64.
    """

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def contiguous(self) -> bool:
        """Return whether its entries lie in C order without gaps."""
        return in_order(self.shape, self.strides)

    @property
    def flags(self) -> SimpleNamespace:
        """Return NumPy's `carray`, which optimizers ask for: whether a kernel can work in place."""
        return SimpleNamespace(carray=self.contiguous)

    @property
    def pointer(self) -> Any:
        """Return what a kernel gets for it. The array has to be contiguous."""
        return self.storage.address + 4 * self.first

    @property
    def span(self) -> int:
        """Return the number of entries of its memory from its first to its last, both included."""
        steps = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        return 1 + sum(steps) if self.size else 0

    @property
    def T(self) -> DeviceArray:
        """Return the view with its axes reversed."""
        return DeviceArray(self.storage, self.first, self.shape[::-1], self.strides[::-1], self.dtype)

    @property
    def real(self) -> DeviceArray:
        """Return itself: there are no complex numbers here."""
        return self

    def reshape(self, *shape: Any) -> DeviceArray:
        """Return the entries in another shape, of which one length may be −1: a view if contiguous, else a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in wanted:
            rest = -math.prod(wanted)
            wanted = tuple(self.size // max(rest, 1) if n == -1 else n for n in wanted)
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {wanted}")
        x = self if self.contiguous else copied(self)
        return DeviceArray(x.storage, x.first, wanted, c_strides(wanted), x.dtype)

    def __getitem__(self, index: Any) -> DeviceArray:
        """Return a view: integers and slices of step 1, for the first axes."""
        first, shape, strides = self.first, [], []
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) > self.ndim:
            raise IndexError(f"{len(indices)} indices for an array of {self.ndim} axes")
        for axis, (n, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            wanted = indices[axis] if axis < len(indices) else slice(None)
            if isinstance(wanted, slice):
                start, stop, step = wanted.indices(n)
                if step != 1:
                    raise IndexError(f"only slices of step 1 are views here, got {wanted}")
                shape.append(max(stop - start, 0))
                strides.append(stride)
                first += start * stride if shape[-1] else 0
            else:
                if not -n <= wanted < n:
                    raise IndexError(f"index {wanted} is out of range for axis {axis} of length {n}")
                first += (wanted % n) * stride
        return DeviceArray(self.storage, first, tuple(shape), tuple(strides), self.dtype)

    def __float__(self) -> float:
        """Return its only entry. Waits for the GPU, as `to_host` does."""
        return float(to_host(self).reshape(()))

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this array is in the GPU's memory; to_host copies it to NumPy's")

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape})"


@lru_cache(4096)
def in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether an array of this shape, with strides in entries, is in C order without gaps."""
    return 0 in shape or all(
        n == 1 or stride == expected for n, stride, expected in zip(shape, strides, c_strides(shape), strict=True)
    )


@lru_cache(4096)
def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in entries, of a contiguous array."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = FLOAT32) -> DeviceArray:
    """Return an uninitialised array.

    Raises:
        UsageError: if it has more entries than an int32 counts.
        MemoryError: if the GPU has no room for it.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size, dtype = math.prod(shape), np.dtype(dtype)
    if size > MOST:
        raise UsageError(
            f"an array of {size:,} numbers is more than a kernel can count, {MOST:,}; make B, T or V smaller"
        )
    return DeviceArray(Storage(size * dtype.itemsize // 4), 0, shape, c_strides(shape), dtype)


def to_device(x: NDArray | DeviceArray) -> DeviceArray:
    """Copy an array to the GPU's memory; one that is there already is returned.

    Raises ValueError unless it is float32 or int32.
    """
    if isinstance(x, DeviceArray):
        return x
    if x.dtype not in (FLOAT32, INT32):
        raise ValueError(f"the cuda backend computes in float32, got an array of {x.dtype}; convert it first")
    copy = empty(x.shape, x.dtype)
    if x.size:
        driver().write(copy.pointer, np.ascontiguousarray(x).reshape(-1))
    return copy


def to_host(x: DeviceArray | NDArray | None) -> NDArray | None:
    """Copy an array to main memory; one that is there already is returned, as are numbers and None."""
    if not isinstance(x, DeviceArray):
        return x
    flat = np.empty(x.span, x.dtype)
    if x.size:
        driver().read(x.pointer, flat)
    return np.lib.stride_tricks.as_strided(flat, x.shape, [x.dtype.itemsize * stride for stride in x.strides]).copy()


def reading(values: Sequence[Any]) -> Callable[[], list[float]]:
    """Begin to read numbers, and arrays of one number: see `Engine.reading`."""
    numbers = driver().begin_read([(x.pointer, x.dtype) for x in values if isinstance(x, DeviceArray)])

    def finish() -> list[float]:
        read = iter(numbers())
        return [next(read) if isinstance(value, DeviceArray) else float(value) for value in values]

    return finish


@kernel(floats, *4 * (int32,), *4 * (int32,), int32, floats, threads=THREADS)
def gather(x, D, n1, n2, n3, s0, s1, s2, s3, size, out):
    """Set out (n0, n1, n2, n3), `size` entries, to x (n0, n1, n2, D), with strides s0 … s3; to 0 from column D on."""
    i = cuda.grid(1)
    if i < size:
        rest, i3 = i // n3, i % n3
        rest, i2 = rest // n2, rest % n2
        i0, i1 = rest // n1, rest % n1
        out[i] = x[i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3] if i3 < D else float32(0)


def copied(x: DeviceArray, out: DeviceArray | None = None, width: int | None = None) -> DeviceArray:
    """Copy a view of up to 4 axes into a contiguous array: `out`, of as many entries, or a new one.

    A thread for each entry reads in whatever order x lies, so a transposed matrix takes longer than a view of rows.

    width: length of the new array's rows, by default that of x; shorter rows of x are filled up with zeros.
    """
    D = x.shape[-1] if x.ndim else 1
    width = D if width is None else width
    out = empty((*x.shape[:-1], width)[: x.ndim]) if out is None else out
    missing = AXES - x.ndim
    _, n1, n2, _ = (*missing * (1,), *x.shape)
    strides = (*missing * (0,), *x.strides)
    gather(blocks(out.size, THREADS), x, D, n1, n2, width, *strides, out.size, out)
    return out
