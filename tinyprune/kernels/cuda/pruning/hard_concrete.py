"""The Hard-Concrete gate. See `tinyprune.ops.hard_concrete`.

    for i: s = sigmoid((log u[i] − log(1 − u[i]) + log_alpha[i]) / beta);  s̄ = s · (zeta − gamma) + gamma
           gate[i] = clip(s̄, 0, 1);  slope[i] = (zeta − gamma) · s (1 − s) / beta where 0 < s̄ < 1, else 0

One thread for each of the few gates. Forward keeps the slope, so backward is a product.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.hard_concrete import check_arguments

THREADS = 128


sigmoid = device(formulas.sigmoid)


@kernel(floats, floats, int32, float32, float32, float32, int32, int32, floats, floats, threads=THREADS)
def evaluate(log_alpha, u, noisy, temperature, gamma, stretch, hard, size, gate, slope):
    """Compute gates and their slopes, all flat. Without noise `u` is not read, and the temperature is 1."""
    i = cuda.grid(1)
    if i < size:
        x = log_alpha[i]
        if noisy:
            x += math.log(u[i]) - math.log1p(-u[i])
        s = sigmoid(x / temperature)
        stretched = s * stretch + gamma
        inside = stretched > 0 and stretched < 1
        value = stretched if inside else float32(stretched >= 1)
        gate[i] = float32(value >= float32(0.5)) if hard else value
        # a product, so that NaN stays NaN
        slope[i] = float32(inside) * stretch * s * (float32(1) - s) / temperature


@kernel(floats, floats, int32, floats, threads=THREADS)
def gradient(dout, slope, size, dlog_alpha):
    """dlog_alpha = dout · slope, all flat."""
    i = cuda.grid(1)
    if i < size:
        dlog_alpha[i] = dout[i] * slope[i]


def hard_concrete_forward(
    log_alpha: DeviceArray, u: NDArray | DeviceArray | None, *, beta: float, gamma: float, zeta: float, hard: bool
) -> tuple[DeviceArray, tuple]:
    """Sample the gates with the noise `u`, which may be in main memory: `ops.hard_concrete_forward` for float32."""
    check_floats(log_alpha=log_alpha)
    check_arguments(log_alpha, u, beta, gamma, zeta)
    noisy = u is not None
    if noisy:
        u = to_device(u)
        check_floats(u=u)
        u = contiguous(u)
    gate, slope = empty(log_alpha.shape), empty(log_alpha.shape)
    numbers = map(np.float32, (beta if noisy else 1, gamma, zeta - gamma))
    size = gate.size
    evaluate(blocks(size, THREADS), contiguous(log_alpha), u, int(noisy), *numbers, int(hard), size, gate, slope)
    return gate, (slope,)


def hard_concrete_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `hard_concrete_forward` with respect to `log_alpha`, as `ops.hard_concrete_backward`."""
    (slope,) = cache
    check_gradient(dout, slope.shape)
    dlog_alpha = empty(slope.shape)
    gradient(blocks(slope.size, THREADS), contiguous(dout), slope, slope.size, dlog_alpha)
    return dlog_alpha
