"""Positions: add a learned vector to every position. See `tinyprune.ops.positions`.

Forward has a thread for each entry of out. Backward has one for each entry of dP, which goes through the batch: threads
read neighbouring entries, and sums run in the order of the texts.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.positions import check_positions

THREADS = 256


@kernel(floats, floats, int32, floats, threads=THREADS)
def add_to_each(x, P, size, out):
    """out = x + P for each text of x (B, size) and the first entries of P."""
    b, i = cuda.blockIdx.y, cuda.grid(1)
    if i < size:
        out[b * size + i] = x[b * size + i] + P[i]


@kernel(floats, int32, int32, int32, floats, threads=THREADS)
def sum_texts(dout, B, size, all_rows, dP):
    """dP (all_rows,): the sums of dout (B, size) over b, and zeros after these."""
    i = cuda.grid(1)
    if i < all_rows:
        total = float32(0)
        if i < size:
            for b in range(B):
                total += dout[b * size + i]
        dP[i] = total


def positions_forward(x: DeviceArray, P: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Add the first T rows of `P` to every text: `ops.positions_forward` for float32."""
    check_floats(x=x, P=P)
    check_positions(x, P)
    B, T, D = x.shape
    out = empty(x.shape)
    add_to_each((blocks(T * D, THREADS), B), contiguous(x), contiguous(P), T * D, out)
    return out, (x.shape, P.shape)


def positions_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `positions_forward` in argument order, as `ops.positions_backward`."""
    shape, table_shape = cache
    check_gradient(dout, shape)
    B, T, D = shape
    dP = empty(table_shape)
    # out = x + P[:T]
    sum_texts(blocks(dP.size, THREADS), contiguous(dout), B, T * D, dP.size, dP)
    return dout, dP
