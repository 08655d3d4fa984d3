"""Positions: add to every place its learned vector, as the plain Transformer does. (Gehring et al. 2017, §3.1)

    out_bt = x_bt + P_t            x (B, T, D)   P (rows, D), rows ≥ T

A text shorter than the table uses its first T rows; the others get no gradient.
"""

import numpy as np
from numpy.typing import NDArray


def positions_forward(x: NDArray, P: NDArray) -> tuple[NDArray, tuple]:
    """Add the first T rows of `P` to every text of the batch.

    Args:
        x: (B, T, D), any float or complex dtype.
        P: a vector for each place, (rows, D), rows ≥ T.

    Returns:
        out: (B, T, D), dtype of `x`, a new array.
        cache: what `positions_backward` needs.

    Raises:
        ValueError: if `P` has fewer rows than `x` places, or another width.
    """
    check_positions(x, P)
    T = x.shape[1]
    return x + P[:T], (len(P),)


def positions_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `positions_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (B, T, D). Not modified.

    Returns:
        dx: `dout` itself, not a copy. Do not modify it.
        dP: (rows, D), the sum over the batch; zeros from row T on.
    """
    (rows,) = cache
    _, T, D = dout.shape
    dP = np.zeros((rows, D), dout.dtype)
    # out = x + P[:T]
    dP[:T] = dout.sum(0)
    return dout, dP


def check_positions(x: NDArray, P: NDArray) -> None:
    """Raise ValueError, naming the argument, unless `P` has a vector as wide as `x` for each of its places."""
    if x.ndim != 3:
        raise ValueError(f"x must be (B, T, D), got {x.shape}")
    _, T, D = x.shape
    if P.ndim != 2 or P.shape[0] < T or P.shape[1] != D:
        raise ValueError(f"P must be (rows, {D}) with rows ≥ {T} to match x {x.shape}, got {P.shape}")
