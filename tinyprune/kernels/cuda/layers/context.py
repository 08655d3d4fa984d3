"""Context: the memory followed by the segment. See `tinyprune.ops.context`.

One thread for each entry of out, and a row of blocks for each b. The memory is read in place, from the context of the
previous segment: gaps between its texts cost nothing, and a copy would move it twice.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import by_rows
from tinyprune.ops.context import check_context, context_backward

__all__ = ["context_backward", "context_forward"]

THREADS = 256


@kernel(floats, int32, floats, int32, int32, int32, floats, threads=THREADS, hot=True)
def join_rows(m, m_step, x, x_step, split, size, out):
    """out (B, size): of each row, `split` entries of m and the rest of x; their rows lie m_step and x_step apart."""
    b, i = cuda.blockIdx.y, cuda.grid(1)
    if i < split:
        out[b * size + i] = m[b * m_step + i]
    elif i < size:
        out[b * size + i] = x[b * x_step + i - split]


def context_forward(m: DeviceArray | None, x: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Put the memory before the segment: `ops.context_forward` for float32."""
    check_context(m, x)
    check_floats(x=x)
    B, T, D = x.shape
    if m is None:
        return x, (T,)
    check_floats(m=m)
    M = m.shape[1]
    out = empty((B, M + T, D))
    size = (M + T) * D
    join_rows((blocks(size, THREADS), B), *by_rows(m), *by_rows(x), M * D, size, out)
    return out, (T,)
