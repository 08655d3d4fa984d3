"""Add: where two paths of the gradient join. See `tinyprune.ops.add`.

One thread for each entry. Views that are not contiguous are copied first.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike
from tinyprune.kernels.cuda.parts.copies import contiguous

THREADS = 256


@kernel(floats, floats, int32, floats, threads=THREADS)
def add_all(a, b, size, out):
    """out = a + b, all flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = a[i] + b[i]


def add(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """Return a + b: `ops.add` for float32."""
    check_alike(a=a, b=b)
    out = empty(a.shape)
    add_all(blocks(out.size, THREADS), contiguous(a), contiguous(b), out.size, out)
    return out
