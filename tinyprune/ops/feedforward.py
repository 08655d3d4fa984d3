"""Feed-forward block of the ordinary Transformer, one hidden layer with a ReLU. (Vaswani et al. 2017, eq. 2)

    a   = x W1 + b1          x (..., D)   W1 (D, F)   b1 (F,)
    h   = max(a, 0)          (..., F)
    out = h W2 + b2          W2 (F, D)    b2 (D,)     out (..., D)

All-attention has none: its persistent vectors do this work inside attention.
"""

from typing import Any

from numpy.typing import NDArray

from tinyprune.ops.linear import linear_backward, linear_forward


def feedforward_forward(
    x: NDArray, W1: NDArray, b1: NDArray, W2: NDArray, b2: NDArray, *, frozen: bool = False
) -> tuple[NDArray, tuple]:
    """Apply two linear maps with a ReLU between them.

    Args:
        x: activations, (..., D), any float or complex dtype.
        W1: (D, F).   b1: (F,).
        W2: (F, D).   b2: (D,).
        frozen: whether weights and biases get no gradients. Then neither x nor h is kept, only where h is positive.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `feedforward_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_arguments(x, W1, b1, W2, b2)
    a, cache1 = linear_forward(x, W1, b1, frozen=frozen)
    active = a.real > 0
    h = a * active
    out, cache2 = linear_forward(h, W2, b2, frozen=frozen)
    return out, (cache1, active, cache2)


def feedforward_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, Any, Any, Any, Any]:
    """Return the gradients of `feedforward_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.

    Returns:
        dx: (..., D).   dW1: (D, F).   db1: (F,).   dW2: (F, D).   db2: (D,). All but dx are None if they are frozen.
    """
    cache1, active, cache2 = cache
    # out = h W2 + b2
    dh, dW2, db2 = linear_backward(dout, cache2)
    # h = max(a, 0)
    da = dh * active
    # a = x W1 + b1
    dx, dW1, db1 = linear_backward(da, cache1)
    return dx, dW1, db1, dW2, db2


def check_arguments(x: NDArray, W1: NDArray, b1: NDArray, W2: NDArray, b2: NDArray) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    if W1.ndim != 2:
        raise ValueError(f"W1 must be (D, F), got {W1.shape}")
    D, F = W1.shape
    if x.ndim < 1 or x.shape[-1] != D:
        raise ValueError(f"x must have {D} features to match W1 {W1.shape}, got x {x.shape}")
    for name, value, shape in (("b1", b1, (F,)), ("W2", W2, (F, D)), ("b2", b2, (D,))):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to match W1 {W1.shape}, got {value.shape}")
