"""Add: where paths of the gradient join. See `tinyprune.ops.add`.

One thread for each entry. Of three axes, such as the last rows of every text, a view is read in place; others are
copied first unless they are contiguous.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike
from tinyprune.kernels.cuda.parts.copies import by_rows, contiguous

THREADS = 256


@kernel(floats, int32, floats, int32, int32, floats, threads=THREADS)
def add_all(a, a_step, b, b_step, size, out):
    """out (rows, size) = a + b, whose rows lie a_step and b_step apart."""
    row, i = cuda.blockIdx.y, cuda.grid(1)
    if i < size:
        out[row * size + i] = a[row * a_step + i] + b[row * b_step + i]


def add(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """Return a + b, as `ops.add`, for float32."""
    check_alike(a=a, b=b)
    out = empty(a.shape)
    if a.ndim == 3 and not (a.contiguous and b.contiguous):
        size = out.size // max(len(a), 1)
        add_all((blocks(size, THREADS), len(a)), *by_rows(a), *by_rows(b), size, out)
    else:
        add_all(blocks(out.size, THREADS), contiguous(a), 0, contiguous(b), 0, out.size, out)
    return out
