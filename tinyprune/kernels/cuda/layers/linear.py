"""Linear: multiply the last axis by a matrix and add a bias. See `tinyprune.ops.linear`.

Three products, see `products.primitives`, which read x and W in place, even if x is a view of a few positions and W a
transposed matrix. Then dW is a transposed view as well, whose `.T` has the layout of that matrix.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.products.plans import rows_of
from tinyprune.kernels.cuda.products.primitives import column_sums, matmul, weight_gradient
from tinyprune.ops.linear import check_arguments


def kept(x: DeviceArray, W: DeviceArray, b: DeviceArray | None, frozen: bool, precision: str) -> tuple:
    """Return the cache; of frozen weights without x."""
    return None if frozen else x, x.shape, W, b is not None and not frozen, precision


def linear_forward(
    x: DeviceArray,
    W: DeviceArray,
    b: DeviceArray | None = None,
    *,
    frozen: bool = False,
    precision: str = "float32",
) -> tuple[DeviceArray, tuple]:
    """Compute x · W + b: `ops.linear_forward` for float32. For `precision`, also of backward, see `primitives`."""
    check_floats(x=x, W=W)
    if b is not None:
        check_floats(b=b)
    check_arguments(x, W, b)
    out = matmul(x, W, bias=b, precision=precision)
    return out, kept(x, W, b, frozen, precision)


def linear_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray | None, DeviceArray | None]:
    """Gradients of `linear_forward`, as `ops.linear_backward`."""
    return gradients(dout, cache)


def gradients(
    dout: DeviceArray, cache: tuple, where: DeviceArray | None = None
) -> tuple[DeviceArray, DeviceArray | None, DeviceArray | None]:
    """Gradients of `linear_forward`; that of x is 0 unless `where`, of its shape, is positive."""
    x, shape, W, has_bias, precision = cache
    check_gradient(dout, (*shape[:-1], W.shape[1]))
    # out = x @ W
    dx = matmul(dout, W.T, where=where, precision=precision)
    if x is None:
        dW = None
    elif rows_of(W.shape, W.strides):
        dW = weight_gradient(x, dout, precision=precision)
    else:
        dW = weight_gradient(dout, x, precision=precision).T
    # out += b
    db = column_sums(dout) if has_bias else None
    return dx, dW, db
