"""RMSNorm: a root mean square of one for every feature vector, then scale it. See `tinyprune.ops.rmsnorm`.

    for each row: rms = sqrt(Σ x² / D + eps);  out = x / rms · scale

One block for each row, as in `layernorm`. Backward recomputes n from x and 1 / rms of each row; dscale is summed by
what sums for LayerNorm, without means.
"""

import math

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.layers.layernorm import LINES, THREADS, parameter_gradients
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.sums import WIDE, block_sum, column_sums, grid_of
from tinyprune.ops.rmsnorm import check_scale


@kernel(floats, floats, int32, float32, floats, floats, threads=THREADS, hot=True)
def normalise(x, scale, D, eps, out, inverses):
    """out, and 1 / rms of each row: a block for each row."""
    scratch = cuda.shared.array(THREADS, float32)
    row, thread = cuda.blockIdx.x, cuda.threadIdx.x
    at = row * D
    total = float32(0)
    for d in range(thread, D, THREADS):
        total += x[at + d] * x[at + d]
    inverse = float32(1) / math.sqrt(block_sum(total, scratch) / float32(D) + eps)
    for d in range(thread, D, THREADS):
        out[at + d] = x[at + d] * inverse * scale[d]
    if thread == 0:
        inverses[row] = inverse


@kernel(*4 * (floats,), *3 * (int32,), floats, floats, threads=THREADS, hot=True)
def normalise_backward(dout, x, inverses, scale, R, D, first, dx, sums):
    """dx = (dn − n · mean_d(dn · n)) / rms: a block for each row; the `first` ones sum over rows, as in `layernorm`."""
    scratch = cuda.shared.array(THREADS, float32)
    scratches = cuda.shared.array((2, LINES, WIDE), float32)
    row, thread = cuda.blockIdx.x - first, cuda.threadIdx.x
    if row < 0:
        parameter_gradients(dout, x, x, inverses, False, R, D, cuda.blockIdx.x, scratches, sums)
        return
    at, inverse = row * D, inverses[row]
    total = float32(0)
    for d in range(thread, D, THREADS):
        total += dout[at + d] * scale[d] * x[at + d] * inverse
    dn_n_mean = block_sum(total, scratch) / float32(D)
    for d in range(thread, D, THREADS):
        dx[at + d] = (dout[at + d] * scale[d] - x[at + d] * inverse * dn_n_mean) * inverse


def rmsnorm_forward(x: DeviceArray, scale: DeviceArray, eps: float = 1e-5) -> tuple[DeviceArray, tuple]:
    """Normalise the last axis of `x`, then scale it: `ops.rmsnorm_forward` for float32."""
    check_floats(x=x, scale=scale)
    check_scale(x, scale)
    x, scale = contiguous(x), contiguous(scale)
    D, R = x.shape[-1], math.prod(x.shape[:-1])
    out, inverses = empty(x.shape), empty(R)
    normalise(R, x, scale, D, eps, out, inverses)
    return out, (x, inverses, scale)


def rmsnorm_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `rmsnorm_forward` in argument order, as `ops.rmsnorm_backward`."""
    x, inverses, scale = cache
    check_gradient(dout, x.shape)
    dout = contiguous(dout)
    D, R = scale.size, inverses.size
    dx = empty(x.shape)
    across, runs = grid_of(R, D)
    sums = empty((runs, 2 * D))  # dscale, and dbias, which is not used
    first = across * runs
    normalise_backward(first + R, dout, x, inverses, scale, R, D, first, dx, sums)
    return dx, column_sums(sums)[:D]
