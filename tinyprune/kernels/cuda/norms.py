"""LayerNorm and RMSNorm of every feature vector. See `tinyprune.ops.layernorm` and `tinyprune.ops.rmsnorm`.

    for each row: mean = Σ x / D, or 0 for RMSNorm;  std = sqrt(Σ (x − mean)² / D + eps);  n = (x − mean) / std
                  out = n · scale (+ bias)

One block for each row; neighbouring threads read neighbouring features. Backward recomputes n from x, and the mean and
1 / std of each row. dscale and dbias are sums over all rows: some more blocks sum 32 features over a run of rows each,
in the same launch, and the runs are summed afterwards, in order, so no bit depends on which block runs first.
"""

import math

from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.instructions import rounded_product
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.sums import WIDE, block_sum, grid_of, sum_all
from tinyprune.ops.layernorm import check_scale_and_bias
from tinyprune.ops.rmsnorm import check_scale

THREADS = 128
LINES = THREADS // WIDE  # of threads that sum over rows
RUN = 64  # rows of a block of them


@device
def parameter_gradients(dout, x, means, inverses, centred, R, D, block, scratch, sums):
    """Set sums (runs, 2, D) to the part of a run of rows in dscale = Σ dout · n and in dbias = Σ dout, of 32 features.

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


def make_norm(name: str, centred: bool) -> tuple[Kernel, Kernel]:
    """Make the kernels of LayerNorm, which is centred and has a bias, or of RMSNorm; `means`, `bias` are for it alone.

    They are called `name` and `name`_backward.
    """

    @kernel(*3 * (floats,), int32, float32, *3 * (floats,), name=name, threads=THREADS)
    def normalise(x, scale, bias, D, eps, out, means, inverses):
        """Compute out, and the mean and 1 / std of each row: a block for each row."""
        scratch = cuda.shared.array(THREADS, float32)
        row, thread = cuda.blockIdx.x, cuda.threadIdx.x
        at, size = row * D, float32(D)
        mean = float32(0)
        if centred:
            total = float32(0)
            for d in range(thread, D, THREADS):
                total += x[at + d]
            mean = block_sum(total, scratch) / size
        total = float32(0)
        for d in range(thread, D, THREADS):
            away = x[at + d] - mean
            total += away * away
        inverse = float32(1) / math.sqrt(block_sum(total, scratch) / size + eps)
        for d in range(thread, D, THREADS):
            scaled = (x[at + d] - mean) * inverse * scale[d]
            out[at + d] = scaled + bias[d] if centred else scaled
        if thread == 0:
            inverses[row] = inverse
            if centred:
                means[row] = mean

    @kernel(*5 * (floats,), *3 * (int32,), floats, floats, name=f"{name}_backward", threads=THREADS)
    def normalise_backward(dout, x, means, inverses, scale, R, D, first, dx, sums):
        """Compute dx = (dn − mean_d dn − n · mean_d(dn · n)) / std, a block for each row; `first` ones sum over rows.

        The first mean is 0 for RMSNorm.
        """
        scratch = cuda.shared.array(THREADS, float32)
        scratches = cuda.shared.array((2, LINES, WIDE), float32)
        row, thread = cuda.blockIdx.x - first, cuda.threadIdx.x
        if row < 0:
            parameter_gradients(dout, x, means, inverses, centred, R, D, cuda.blockIdx.x, scratches, sums)
            return
        at, size, inverse = row * D, float32(D), inverses[row]
        mean = means[row] if centred else float32(0)
        dn_sum, dn_n_sum = float32(0), float32(0)
        for d in range(thread, D, THREADS):
            dn = rounded_product(dout[at + d], scale[d])
            dn_sum += dn
            dn_n_sum += dn * (x[at + d] - mean) * inverse
        dn_mean = block_sum(dn_sum, scratch) / size if centred else float32(0)
        dn_n_mean = block_sum(dn_n_sum, scratch) / size
        for d in range(thread, D, THREADS):
            n = (x[at + d] - mean) * inverse
            dx[at + d] = (rounded_product(dout[at + d], scale[d]) - dn_mean - n * dn_n_mean) * inverse

    return normalise, normalise_backward


LAYERNORM, RMSNORM = make_norm("layernorm", True), make_norm("rmsnorm", False)


def normalised(x: DeviceArray, scale: DeviceArray, bias: DeviceArray | None, eps: float) -> tuple[DeviceArray, tuple]:
    """Return the output of LayerNorm, or without a bias of RMSNorm, and what backward needs."""
    x, scale = contiguous(x), contiguous(scale)
    D, R = x.shape[-1], math.prod(x.shape[:-1])
    out, means, inverses = empty(x.shape), None if bias is None else empty(R), empty(R)
    norm, _ = RMSNORM if bias is None else LAYERNORM
    norm(R, x, scale, bias, D, eps, out, means, inverses)
    return out, (x, means, inverses, scale)


def layernorm_forward(
    x: DeviceArray, scale: DeviceArray, bias: DeviceArray, eps: float = 1e-5
) -> tuple[DeviceArray, tuple]:
    """Normalise the last axis of `x`, then scale and shift it: `ops.layernorm_forward` for float32."""
    check_floats(x=x, scale=scale, bias=bias)
    check_scale_and_bias(x, scale, bias)
    return normalised(x, scale, contiguous(bias), eps)


def layernorm_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Gradients of `layernorm_forward` in argument order, as `ops.layernorm_backward`."""
    x, means, inverses, scale = cache
    check_gradient(dout, x.shape)
    D, R = scale.size, inverses.size
    dx = empty(x.shape)
    across, runs = grid_of(R, D, RUN)
    sums, dparameters = empty((runs, 2 * D)), empty(2 * D)
    first = across * runs
    _, backward = RMSNORM if means is None else LAYERNORM
    backward(first + R, contiguous(dout), x, means, inverses, scale, R, D, first, dx, sums)
    sum_all([(sums, runs, dparameters)])
    return dx, dparameters[:D], dparameters[D:]


def rmsnorm_forward(x: DeviceArray, scale: DeviceArray, eps: float = 1e-5) -> tuple[DeviceArray, tuple]:
    """Normalise the last axis of `x`, then scale it: `ops.rmsnorm_forward` for float32."""
    check_floats(x=x, scale=scale)
    check_scale(x, scale)
    return normalised(x, scale, None, eps)


def rmsnorm_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `rmsnorm_forward` in argument order, as `ops.rmsnorm_backward`."""
    return layernorm_backward(dout, cache)[:2]
