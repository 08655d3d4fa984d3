"""Join: vectors one after the other. See `tinyprune.ops.join`.

    for each array: for i: out[at + i] = x[i]        at: entries of those before

One launch for each array, one thread for each of its entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyprune.kernels.cuda.arguments import check_floats
from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.jit import blocks, cuda, floats, int32, kernel
from tinyprune.ops.join import check_vectors

THREADS = 128


@kernel(floats, int32, int32, floats, threads=THREADS)
def copy(x, step, size, out):
    """out[i] = x[i · step]."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i * step]


def join(arrays: Sequence[DeviceArray]) -> DeviceArray:
    """All entries in a row, a new array: `ops.join` for float32."""
    check_floats(**{f"arrays[{i}]": x for i, x in enumerate(arrays)})
    check_vectors(arrays)
    out = empty(sum(x.size for x in arrays))
    at = 0
    for x in arrays:
        copy(blocks(x.size, THREADS), x, x.strides[0], x.size, out[at : at + x.size])
        at += x.size
    return out
