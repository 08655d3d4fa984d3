"""Feed-forward block of the ordinary Transformer, one hidden layer with a ReLU. See `tinyprune.ops.feedforward`.

Two linear maps. The first product applies the ReLU before it writes, and in backward the ReLU's gradient, which saves
two passes. Only h is kept, since h > 0 is true where the input of the ReLU was positive.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.layers.linear import gradients, kept, linear_backward, linear_forward
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.products.primitives import matmul
from tinyprune.ops.feedforward import check_arguments


def feedforward_forward(
    x: DeviceArray,
    W1: DeviceArray,
    b1: DeviceArray,
    W2: DeviceArray,
    b2: DeviceArray,
    *,
    frozen: bool = False,
    precision: str = "float32",
) -> tuple[DeviceArray, tuple]:
    """Two linear maps with a ReLU between: `ops.feedforward_forward` for float32. For `precision` see `linear`."""
    check_floats(x=x, W1=W1, b1=b1, W2=W2, b2=b2)
    check_arguments(x, W1, b1, W2, b2)
    h = matmul(x, W1, bias=b1, relu=True, precision=precision)
    out, cache2 = linear_forward(h, W2, b2, frozen=frozen, precision=precision)
    return out, (kept(x, W1, b1, frozen, precision), h, cache2)


def feedforward_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray | None, ...]:
    """Gradients of `feedforward_forward` in argument order, as `ops.feedforward_backward`."""
    cache1, h, cache2 = cache
    # out = h W2 + b2
    # h = max(a, 0)
    dh, dW2, db2 = gradients(dout, cache2, h)
    # a = x W1 + b1
    dx, dW1, db1 = linear_backward(dh, cache1)
    return dx, dW1, db1, dW2, db2
