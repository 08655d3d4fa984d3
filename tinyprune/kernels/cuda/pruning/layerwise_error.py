"""Layer-wise error: a loss for a layer's gates. See `tinyprune.ops.layerwise_error`.

    for a, b: G[a, b] = Σ_ij (oᵀo)[a·Dh + i, b·Dh + j] · (Wo Woᵀ)[a·Dh + i, b·Dh + j]
    error = eᵀ G e / full        e = c · gate − 1        full = Σ G + 2 (Σ o Wo) · bo + B·T · bo · bo

Two large products by `matmul`, and one of a single row. G has a block for each pair of heads, whose threads go down the
columns of their part of the matrices. The rest, (H, H) numbers and two vectors, is one block. It also computes the
gradient for dout = 1, so backward is a product.
"""

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous, scaled
from tinyprune.kernels.cuda.parts.sums import block_sum
from tinyprune.kernels.cuda.products.primitives import column_sums, matmul, weight_gradient
from tinyprune.ops.layerwise_error import check_arguments

THREADS = 64


@kernel(floats, floats, int32, int32, floats, threads=THREADS)
def inner_products(oo, WW, H, Dh, G):
    """G (H, H): the elementwise product of oo and WW, both (H·Dh, H·Dh), summed for each pair of heads."""
    scratch = cuda.shared.array(THREADS, float32)
    a, b = cuda.blockIdx.y, cuda.blockIdx.x
    total = float32(0)
    for j in range(cuda.threadIdx.x, Dh, THREADS):
        for i in range(Dh):
            at = (a * Dh + i) * H * Dh + b * Dh + j
            total += oo[at] * WW[at]
    total = block_sum(total, scratch)
    if cuda.threadIdx.x == 0:
        G[a * H + b] = total


@kernel(floats, float32, floats, floats, floats, float32, int32, int32, floats, floats, threads=THREADS)
def error_of(gate, scale, G, outputs, bo, count, H, D, error, slope):
    """error[0], and slope (H,) = ∂error/∂gate. One block."""
    scratch = cuda.shared.array(THREADS, float32)
    thread = cuda.threadIdx.x
    full = float32(0)
    for k in range(thread, H * H, THREADS):
        full += G[k]
    for d in range(thread, D, THREADS):
        full += (float32(2) * outputs[d] + count * bo[d]) * bo[d]
    full = block_sum(full, scratch)
    if full == 0:
        full = float32(1)  # a layer whose heads add nothing has no error
    total = float32(0)
    for a in range(thread, H, THREADS):
        product = float32(0)  # (G e)[a]
        for b in range(H):
            product += G[a * H + b] * (scale * gate[b] - float32(1))
        total += (scale * gate[a] - float32(1)) * product
        slope[a] = float32(2) * scale * product / full
    total = block_sum(total, scratch)
    if thread == 0:
        error[0] = total / full


def layerwise_error_forward(
    gate: DeviceArray, o: DeviceArray, Wo: DeviceArray, bo: DeviceArray, scale: float = 1.0
) -> tuple[DeviceArray, tuple]:
    """Compute the relative squared error of the gates, of shape (): `ops.layerwise_error_forward` for float32."""
    check_floats(gate=gate, o=o, Wo=Wo, bo=bo)
    check_arguments(gate, o, Wo, bo)
    B, T, H, Dh = o.shape
    rows = contiguous(o).reshape(B * T, H * Dh)
    oo, WW = weight_gradient(rows, rows), matmul(Wo, Wo.T)
    outputs = matmul(column_sums(rows), Wo)
    G, error, slope = empty((H, H)), empty(()), empty(H)
    inner_products((H, H), oo, WW, H, Dh, G)
    numbers = np.float32(B * T), H, bo.size
    error_of(1, contiguous(gate), np.float32(scale), G, outputs, contiguous(bo), *numbers, error, slope)
    return error, (slope,)


def layerwise_error_backward(dout: float | DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `layerwise_error_forward` with respect to `gate`, as `ops.layerwise_error_backward`."""
    (slope,) = cache
    return scaled(slope, dout)
