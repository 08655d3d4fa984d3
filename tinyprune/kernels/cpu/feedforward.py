"""Feed-forward block of the ordinary Transformer, one hidden layer with a ReLU. See `tinyprune.ops.feedforward`.

    for r: h[r] = max(x[r] · W1 + b1, 0);  out[r] = h[r] · W2 + b2

Two linear maps, see `linear`, and one pass between them; only h is saved, since h > 0 exactly where a > 0.

Times (ms, 2 threads), x (16, 128, 128), F 512 in float32: forward 2.5, NumPy 6.3; backward 4.6, NumPy 6.9.
"""

from typing import Any

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, flat
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.linear import linear_backward, linear_forward
from tinyprune.ops.feedforward import check_arguments


@parallel_kernel
def rectify(a):
    """Set a = max(a, 0), in place; NaN stays."""
    zero = a.dtype.type(0)
    for i in prange(a.size):
        a[i] = zero if a[i] < zero else a[i]


@parallel_kernel
def rectify_gradient(dh, h, da):
    """Set da = dh where h > 0, and dh · 0 elsewhere."""
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    for i in prange(h.size):
        da[i] = dh[i] * (one if h[i] > zero else zero)


def feedforward_forward(
    x: NDArray, W1: NDArray, b1: NDArray, W2: NDArray, b2: NDArray, *, frozen: bool = False
) -> tuple[NDArray, tuple]:
    """Apply two linear maps with a ReLU between them, as `ops.feedforward_forward`; float32 or float64."""
    check_floats(x=x, W1=W1, b1=b1, W2=W2, b2=b2)
    check_arguments(x, W1, b1, W2, b2)
    h, cache1 = linear_forward(x, W1, b1, frozen=frozen)
    rectify(h.reshape(-1))
    out, cache2 = linear_forward(h, W2, b2, frozen=frozen)
    return out, (cache1, h, cache2)


def feedforward_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, Any, Any, Any, Any]:
    """Return the gradients of `feedforward_forward`, as `ops.feedforward_backward`."""
    cache1, h, cache2 = cache
    # out = h W2 + b2
    dh, dW2, db2 = linear_backward(dout, cache2)
    # h = max(a, 0)
    da = workspace.empty(h.shape, h.dtype)
    rectify_gradient(flat(dh), flat(h), da.reshape(-1))
    # a = x W1 + b1
    dx, dW1, db1 = linear_backward(da, cache1)
    return dx, dW1, db1, dW2, db2
