"""An array in the GPU's memory, with as much of NumPy's manners as the model needs, and no arithmetic.

Its entries are float32 (or int32, for token numbers and places). `x[2:5]`, `x[:, -3:]`, `x[1]`, `x.T`, `x.reshape(…)`
are views: nothing is copied. What computes is the operations of this folder; they copy a view whose entries do not lie
side by side before a kernel that wants that reads it.

    x = to_device(array)        a copy in the GPU's memory
    array = to_host(x)          and back, once all is computed that x waits for
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.jit import SIMULATED
from tinyprune.kernels.cuda.device.memory import Lease

MOST = 2**31 - 1  # what an int32 holds, of which kernels' sizes are
FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


class DeviceArray:
    """Some entries of a block of the GPU's memory.

    Attributes:
        lease: of the block.
        first: number of the entry of the block where the array begins.
        shape: as in NumPy.
        strides: how many *entries* lie from one index to the next, for each axis.
        dtype: float32 or int32.
    """

    __slots__ = ("dtype", "first", "lease", "shape", "strides")

    def __init__(
        self, lease: Lease, first: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.lease = lease
        self.first = first
        self.shape = shape
        self.strides = strides
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def contiguous(self) -> bool:
        """Whether its entries lie side by side, in C order."""
        return in_order(self.shape, self.strides)

    @property
    def flags(self) -> SimpleNamespace:
        """As far as the optimizers ask: `carray`, whether a kernel can work on it in place."""
        return SimpleNamespace(carray=self.contiguous)

    @property
    def pointer(self) -> Any:
        """What a kernel takes for it; only of a contiguous one does it find the entries."""
        # how many there are only the simulator asks, and a launch has little time
        return self.lease.pointer(self.first, self.span if SIMULATED else 0, self.dtype)

    @property
    def span(self) -> int:
        """Entries of the block from its first to its last."""
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) if self.size else 0

    @property
    def T(self) -> DeviceArray:
        """Its axes in the opposite order."""
        return DeviceArray(self.lease, self.first, self.shape[::-1], self.strides[::-1], self.dtype)

    @property
    def real(self) -> DeviceArray:
        """Itself: there are no complex numbers here."""
        return self

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same entries in another shape; one length may be −1. ValueError if that takes a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in wanted:
            rest = -math.prod(wanted)
            wanted = tuple(self.size // max(rest, 1) if n == -1 else n for n in wanted)
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape {self.shape} into {wanted}")
        if not self.contiguous:
            raise ValueError(f"cannot reshape a view with strides {self.strides}; copy it first")
        return DeviceArray(self.lease, self.first, wanted, c_strides(wanted), self.dtype)

    def __getitem__(self, index: Any) -> DeviceArray:
        """A view: whole numbers and slices of step 1, for the first axes."""
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
        return DeviceArray(self.lease, first, tuple(shape), tuple(strides), self.dtype)

    def __float__(self) -> float:
        """Its only entry, copied to main memory, for which Python waits, as for `to_host`."""
        return float(to_host(self).reshape(()))

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this array is in the GPU's memory; to_host copies it to NumPy's")

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape})"


@lru_cache(4096)
def in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the entries of an array of this shape, with strides in entries, lie side by side in C order."""
    return 0 in shape or all(
        n == 1 or stride == expected for n, stride, expected in zip(shape, strides, c_strides(shape), strict=True)
    )


@lru_cache(4096)
def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in entries of an array that lies in C order without gaps."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = FLOAT32) -> DeviceArray:
    """An array of whatever the memory holds.

    Raises:
        UsageError: if it has more entries than a kernel can count.
        MemoryError: if the GPU has no room for it.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape)
    if size > MOST:
        raise UsageError(
            f"an array of {size:,} numbers is more than a kernel can count, {MOST:,}; make B, T or V smaller"
        )
    return DeviceArray(Lease(size), 0, shape, c_strides(shape), np.dtype(dtype))


def to_device(x: NDArray | DeviceArray) -> DeviceArray:
    """A copy in the GPU's memory of an array of float32 or int32. What is there already stays.

    Raises:
        ValueError: if the numbers are not those that a kernel works on.
    """
    if isinstance(x, DeviceArray):
        return x
    if x.dtype not in (FLOAT32, INT32):
        raise ValueError(f"the cuda backend computes in float32, got an array of {x.dtype}; convert it first")
    copy = empty(x.shape, x.dtype)
    if x.size:
        copy.lease.write(0, np.ascontiguousarray(x).reshape(-1))
    return copy


def to_host(x: DeviceArray | NDArray | None) -> NDArray | None:
    """A copy in main memory. An array that is there already stays, as do numbers and None."""
    if not isinstance(x, DeviceArray):
        return x
    flat = np.empty(x.span, x.dtype)
    if x.size:
        x.lease.read(x.first, flat)
    return np.lib.stride_tricks.as_strided(flat, x.shape, [4 * stride for stride in x.strides]).copy()
