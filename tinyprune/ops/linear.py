"""Linear: multiply the last axis by a matrix and add a bias.

out = x W + b            x (..., K)   W (K, O)   b (O,)   out (..., O)
"""

from typing import Any

from numpy.typing import NDArray

from tinyprune.ops.products import rows
from tinyprune.ops.shapes import check_shapes


def linear_forward(x: NDArray, W: NDArray, b: NDArray | None = None, *, frozen: bool = False) -> tuple[NDArray, tuple]:
    """Multiply the last axis of `x` by `W`; add `b` if there is one.

    Args:
        x: activations, (..., K), any float or complex dtype.
        W: weights, (K, O).
        b: bias, (O,), or None.
        frozen: whether W and b get no gradients. Then x is not kept, which only dW needs.

    Returns:
        out: (..., O), dtype of `x`.
        cache: what `linear_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_arguments(x, W, b)
    out = (rows(x) @ W).reshape(*x.shape[:-1], W.shape[1])
    if b is not None:
        out += b
    return out, (None if frozen else x, W, b is not None and not frozen)


def linear_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, Any, Any]:
    """Return the gradients of `linear_forward` in argument order.

    Each row of x meets the whole of W, and W meets every row, so

        dx = dout Wᵀ        dW = xᵀ dout        db = Σ_rows dout.

    Args:
        dout: gradient of the loss with respect to `out`, (..., O). Not modified.

    Returns:
        dx: (..., K).
        dW: (K, O).   db: (O,), or None if there was no bias. Both are None if they are frozen.
    """
    x, W, has_bias = cache
    dout_rows = rows(dout)
    # out = x @ W
    dx = (dout_rows @ W.T).reshape(*dout.shape[:-1], W.shape[0])
    dW = None if x is None else rows(x).T @ dout_rows
    # out += b
    db = dout_rows.sum(0) if has_bias else None
    return dx, dW, db


def check_arguments(x: NDArray, W: NDArray, b: NDArray | None) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    check_shapes("x: ... K, W: K O, b?: O", x, W, b)
