"""Repeat heads: give every query head the keys or values that it shares with others, as in grouped-query attention.
(Ainslie et al. 2023, §2.2)

    out[b, s, h] = x[b, s, index[h]]            x (B, S, K, Dh)   index (H,)   out (B, S, H, Dh)

With fewer heads of keys and values than of queries the model has fewer weights, and less to remember of a text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.slices import check_index


def repeat_heads_forward(x: NDArray, index: Sequence[int] | NDArray) -> tuple[NDArray, tuple]:
    """Copy the head `index[h]` of `x` to head h, for all h.

    Args:
        x: keys or values, (B, S, K, Dh), any float or complex dtype.
        index: which head of `x` each head reads, (H,), integers in 0 … K−1 in any order. Some may be missing.

    Returns:
        out: (B, S, H, Dh), dtype of `x`, a new array.
        cache: what `repeat_heads_backward` needs.

    Raises:
        ValueError: if `x` has not four axes or `index` is out of range.
    """
    check_arguments(x, index)
    return np.take(x, np.asarray(index, np.int64), axis=2), (index, x.shape)


def repeat_heads_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `repeat_heads_forward` with respect to `x`.

    Args:
        dout: gradient of the loss with respect to `out`, (B, S, H, Dh). Not modified.

    Returns:
        dx: (B, S, K, Dh), for each head the sum over those that read it.
    """
    index, shape = cache
    dx = np.zeros(shape, dout.dtype)
    for h, k in enumerate(index):
        # out[:, :, h] = x[:, :, k]
        dx[:, :, k] += dout[:, :, h]
    return dx


def check_arguments(x: NDArray, index: Sequence[int] | NDArray) -> None:
    """Raise ValueError, naming the argument, unless `index` has numbers of heads of `x`."""
    if x.ndim != 4:
        raise ValueError(f"x must be (B, S, K, Dh), got {x.shape}")
    numbers = np.asarray(index)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"index must be (H,), integers, got {numbers.dtype} {numbers.shape}")
    check_index(index, x.shape[2])
