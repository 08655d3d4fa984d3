"""Rows of a matrix by number: taken, times the dropout factors of their words, or added.

    take: out[i] = x[places[i]] · factor(places[i])
    add:  out[places[i]] = out[places[i]] + rows[i]

A block for each row. In `add` all places differ, so no two blocks write to one row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import cuda, floats, int32, ints, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_in_place
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.masks import DROPOUT, KEEP_ALL, Dropout, keep_factor
from tinyprune.ops.rows import check_each_row, check_rows_index

THREADS = 128


@kernel(floats, ints, DROPOUT, int32, floats, threads=THREADS, hot=True)
def take(x, places, dropout, D, out):
    """out (n, D) from x (R, D)."""
    i = cuda.blockIdx.x
    times = keep_factor(places[i], dropout)
    for d in range(cuda.threadIdx.x, D, THREADS):
        out[i * D + d] = x[places[i] * D + d] * times


@kernel(floats, ints, int32, floats, threads=THREADS)
def add(rows, places, D, out):
    """out (R, D), to which rows (n, D) are added."""
    i = cuda.blockIdx.x
    for d in range(cuda.threadIdx.x, D, THREADS):
        out[places[i] * D + d] += rows[i * D + d]


class Tokens(np.ndarray):
    """Tokens of a batch in main memory, whose copies are in the GPU's memory as well; see `embedding.tokens`."""

    there: DeviceArray  # the same, flat
    chunks: tuple[DeviceArray, ...]  # of `embedding.chunks_of`, for ids


def numbers(values: NDArray) -> DeviceArray:
    """Copy integers to the GPU's memory, as int32."""
    return to_device(values.astype(np.int32))


def together(parts: Sequence[NDArray]) -> tuple[DeviceArray, ...]:
    """Copy flat arrays of integers to the GPU's memory, as int32, with one copy."""
    joined = numbers(np.concatenate(parts))
    ends = np.cumsum([part.size for part in parts]).tolist()
    return tuple(joined[end - part.size : end] for part, end in zip(parts, ends, strict=True))


def there(values: NDArray) -> DeviceArray:
    """Return flat int32 values in the GPU's memory: those of `Tokens`, or a copy."""
    return values.there if hasattr(values, "there") else numbers(values.reshape(-1))


def taken_rows(x: DeviceArray, places: NDArray, mask: Dropout = KEEP_ALL) -> DeviceArray:
    """Return the n rows `places` of x (R, D) times their factors: (n, D)."""
    D = x.shape[1]
    out = empty((places.size, D))
    take(places.size, contiguous(x), there(places), mask, D, out)
    return out


def take_rows(x: DeviceArray, index: NDArray) -> DeviceArray:
    """Copy rows, as `ops.take_rows`, for float32 (R, ...); `index` in main memory."""
    check_floats(x=x)
    check_rows_index(index, len(x))
    return taken_rows(x.reshape(len(x), x.size // max(len(x), 1)), index).reshape(index.size, *x.shape[1:])


def add_rows(x: DeviceArray, index: NDArray, rows: DeviceArray) -> DeviceArray:
    """Add rows in place, as `ops.add_rows`, for float32; `index` in main memory."""
    check_floats(x=x, rows=rows)
    check_in_place(x=x)
    check_rows_index(index, len(x))
    check_each_row(x, index, rows)
    add(index.size, contiguous(rows), numbers(index), x.shape[1], x)
    return x
