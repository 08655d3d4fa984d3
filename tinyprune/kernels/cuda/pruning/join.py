"""Join: vectors one after the other. See `tinyprune.ops.join`. One launch for each array."""

from collections.abc import Sequence

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import copied
from tinyprune.ops.join import check_vectors


def join(arrays: Sequence[DeviceArray]) -> DeviceArray:
    """Return a new array of all entries: `ops.join` for float32."""
    check_floats(arrays=arrays)
    check_vectors(arrays)
    out = empty(sum(x.size for x in arrays))
    at = 0
    for x in arrays:
        copied(x, out[at : at + x.size])
        at += x.size
    return out
