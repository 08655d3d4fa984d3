"""Linear, made of products, for engines that compile products. See `tinyprune.ops.linear`."""

from typing import Any

from tinyprune.ops.engine import Array, Engine
from tinyprune.ops.linear import check_arguments


def linear_forward(
    ops: Engine, x: Array, W: Array, b: Array | None = None, *, frozen: bool = False
) -> tuple[Array, tuple]:
    """Multiply the last axis of `x` by `W` and add `b`, as `ops.linear_forward`."""
    check_arguments(x, W, b)
    return ops.matmul(x, W, bias=b), (None if frozen else x, W, b is not None and not frozen)


def linear_backward(ops: Engine, dout: Array, cache: tuple) -> tuple[Array, Any, Any]:
    """Return the gradients of `linear_forward`, as `ops.linear_backward`."""
    x, W, has_bias = cache
    # out = x W + b
    dx = ops.matmul(dout, W.T)
    if x is None:
        return dx, None, None
    (dW,), db = ops.weight_gradients([(x, dout)], [dout] if has_bias else [])
    return dx, dW, db[0] if has_bias else None
