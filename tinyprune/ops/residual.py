"""Residual connection: add to x what a block has made of it, a random share of that dropped. (He et al. 2016, eq. 1)

    out = x + y · keep / (1 − dropout)        keep ∈ {0, 1}, as in dropout

Dropout and sum are one operation, because a compiled kernel then passes over the arrays once.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.dropout import check_rate, dropout_backward, dropout_forward


def residual_forward(
    x: NDArray, y: NDArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[NDArray, tuple]:
    """Add `y` to `x`; in training, what dropout leaves of `y`.

    Args:
        x: input of a block, any shape, any float or complex dtype.
        y: output of the block, shape of `x`.
        dropout: share of the entries of `y` to drop, 0 ≤ dropout < 1. The same entries as in `dropout_forward`.
        rng: where the mask's keys are drawn from, or None for evaluation. With dropout 0 nothing is drawn.

    Returns:
        out: shape and dtype of `x`, a new array.
        cache: what `residual_backward` needs.

    Raises:
        ValueError: if the shapes differ, or `dropout` is not in [0, 1).
    """
    check_same_shape(x=x, y=y)
    check_rate("dropout", dropout)
    dropped, cache = dropout_forward(y, dropout, rng)
    return x + dropped, cache


def residual_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `residual_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, shape of `x`. Not modified.

    Returns:
        dx: `dout` itself, not a copy.
        dy: shape of `x`; also `dout` itself where nothing was dropped. Modify neither.
    """
    # out = x + dropout(y)
    return dout, dropout_backward(dout, cache)
