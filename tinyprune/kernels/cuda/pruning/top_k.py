"""Soft top-k: the k largest of n gates. See `tinyprune.ops.top_k`.

One number for each head of the model, k sequential rounds, and Python needs the result to skip heads: no work for a
GPU. The textbook computes it, and arguments and results are copied.
"""

from numpy.typing import NDArray

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import DeviceArray, to_device, to_host
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient


def top_k_forward(
    log_alpha: DeviceArray, noise: NDArray | DeviceArray | None, *, k: int, tau: float, hard: bool
) -> tuple[DeviceArray, tuple]:
    """Choose k of n gates: `ops.top_k_forward` for float32. The noise may be in main memory."""
    check_floats(log_alpha=log_alpha)
    gate, cache = ops.top_k_forward(to_host(log_alpha), to_host(noise), k=k, tau=tau, hard=hard)
    return to_device(gate), cache


def top_k_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `top_k_forward`, as `ops.top_k_backward`."""
    check_gradient(dout, cache[-1].shape)
    return to_device(ops.top_k_backward(to_host(dout), cache))
