"""LayerNorm: zero mean and unit variance for every feature vector, then scale and shift. See `tinyprune.ops.layernorm`.

    for each row: mean = Σ x / D;  std = sqrt(Σ (x − mean)² / D + eps);  out = (x − mean) / std · scale + bias

One block for each row; neighbouring threads read neighbouring features. Backward recomputes n from x, and the mean and
1 / std of each row. dscale and dbias are sums over all rows: some more blocks sum 32 features over a run of rows each,
in the same launch, and the runs are summed afterwards, in order, so no bit depends on which block runs first.
"""

import math

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.kernels.cuda.parts.sums import RUN, WIDE, block_sum, column_sums, grid_of
from tinyprune.ops.layernorm import check_scale_and_bias

THREADS = 128
LINES = THREADS // WIDE  # of threads that sum over rows


@kernel(floats, floats, floats, int32, float32, floats, floats, floats, threads=THREADS, hot=True)
def normalise(x, scale, bias, D, eps, out, means, inverses):
    """out, and the mean and 1 / std of each row: a block for each row."""
    scratch = cuda.shared.array(THREADS, float32)
    row, thread = cuda.blockIdx.x, cuda.threadIdx.x
    at, size = row * D, float32(D)
    total = float32(0)
    for d in range(thread, D, THREADS):
        total += x[at + d]
    mean = block_sum(total, scratch) / size
    total = float32(0)
    for d in range(thread, D, THREADS):
        centred = x[at + d] - mean
        total += centred * centred
    inverse = float32(1) / math.sqrt(block_sum(total, scratch) / size + eps)
    for d in range(thread, D, THREADS):
        out[at + d] = (x[at + d] - mean) * inverse * scale[d] + bias[d]
    if thread == 0:
        means[row], inverses[row] = mean, inverse


@device
def parameter_gradients(dout, x, means, inverses, centred, R, D, block, scratch, sums):
    """sums (runs, 2, D): the part of a run of rows in dscale = Σ dout · n and in dbias = Σ dout, of 32 features.

    centred: whether rows have means.   block: of those that do this.
    """
    column, line, across = cuda.threadIdx.x % WIDE, cuda.threadIdx.x // WIDE, (D + WIDE - 1) // WIDE
    d, run = block % across * WIDE + column, block // across
    end = min((run + 1) * RUN, R)
    dscale, dbias = float32(0), float32(0)
    if d < D:
        for row in range(run * RUN + line, end, LINES):
            g = dout[row * D + d]
            dscale += g * (x[row * D + d] - (means[row] if centred else float32(0))) * inverses[row]
            dbias += g
    scratch[0, line, column] = dscale
    scratch[1, line, column] = dbias
    cuda.syncthreads()  # all lines have written before the first one sums them
    if line == 0 and d < D:
        for other in range(1, LINES):
            dscale += scratch[0, other, column]
            dbias += scratch[1, other, column]
        sums[2 * run * D + d] = dscale
        sums[(2 * run + 1) * D + d] = dbias


@kernel(*5 * (floats,), *3 * (int32,), floats, floats, threads=THREADS, hot=True)
def normalise_backward(dout, x, means, inverses, scale, R, D, first, dx, sums):
    """dx = (dn − mean_d dn − n · mean_d(dn · n)) / std: a block for each row; the `first` ones sum over rows."""
    scratch = cuda.shared.array(THREADS, float32)
    scratches = cuda.shared.array((2, LINES, WIDE), float32)
    row, thread = cuda.blockIdx.x - first, cuda.threadIdx.x
    if row < 0:
        parameter_gradients(dout, x, means, inverses, True, R, D, cuda.blockIdx.x, scratches, sums)
        return
    at, size = row * D, float32(D)
    mean, inverse = means[row], inverses[row]
    dn_sum, dn_n_sum = float32(0), float32(0)
    for d in range(thread, D, THREADS):
        dn = dout[at + d] * scale[d]
        dn_sum += dn
        dn_n_sum += dn * (x[at + d] - mean) * inverse
    dn_mean = block_sum(dn_sum, scratch) / size
    dn_n_mean = block_sum(dn_n_sum, scratch) / size
    for d in range(thread, D, THREADS):
        n = (x[at + d] - mean) * inverse
        dx[at + d] = (dout[at + d] * scale[d] - dn_mean - n * dn_n_mean) * inverse


def layernorm_forward(
    x: DeviceArray, scale: DeviceArray, bias: DeviceArray, eps: float = 1e-5
) -> tuple[DeviceArray, tuple]:
    """Normalise the last axis of `x`, then scale and shift it: `ops.layernorm_forward` for float32."""
    check_floats(x=x, scale=scale, bias=bias)
    check_scale_and_bias(x, scale, bias)
    x, scale, bias = contiguous(x), contiguous(scale), contiguous(bias)
    D = x.shape[-1]
    R = math.prod(x.shape[:-1])
    out, means, inverses = empty(x.shape), empty(R), empty(R)
    normalise(R, x, scale, bias, D, eps, out, means, inverses)
    return out, (x, means, inverses, scale)


def layernorm_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Gradients of `layernorm_forward` in argument order, as `ops.layernorm_backward`."""
    x, means, inverses, scale = cache
    check_gradient(dout, x.shape)
    dout = contiguous(dout)
    D, R = scale.size, means.size
    dx = empty(x.shape)
    across, runs = grid_of(R, D)
    sums = empty((runs, 2 * D))
    first = across * runs
    normalise_backward(first + R, dout, x, means, inverses, scale, R, D, first, dx, sums)
    dparameters = column_sums(sums)
    return dx, dparameters[:D], dparameters[D:]
