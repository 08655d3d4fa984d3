"""Repeat heads: give every query head the keys or values that it shares with others, as in grouped-query attention.
(Ainslie et al. 2023, §2.2)

    out[b, s, h] = x[b, s, index[h]]            x (B, S, K, Dh)   index (H,)   out (B, S, H, Dh)

With fewer heads of keys and values than of queries the model has fewer weights, and less to remember of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes
from tinyprune.ops.slices import check_index

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def repeat_heads_forward(ops: Engine, x: NDArray, index: Sequence[int] | NDArray | None) -> tuple[NDArray, Any]:
    """Copy the head `index[h]` of `x` to head h, for all h.

    Args:
        ops: copies; `ops.repeat_heads_forward` passes itself.
        x: keys or values, (B, S, K, Dh), any float or complex dtype.
        index: which head of `x` each head reads, (H,), integers in 0 … K−1 in any order; some may be missing. None
            hands on `x`: each head has its own.

    Returns:
        out: (B, S, H, Dh), dtype of `x`; a new array, or `x` itself without an index.
        cache: what `repeat_heads_backward` needs.

    Raises:
        ValueError: if `x` has not four axes or `index` is out of range.
    """
    if index is None:
        return x, None
    check_shapes("x: B S K Dh", x)
    check_numbers(index, x.shape[2])
    return ops.take_slices(x, index, 2), (index, x.shape[2])


def repeat_heads_backward(ops: Engine, dout: NDArray, cache: Any) -> NDArray:
    """Return the gradient of `repeat_heads_forward` with respect to `x`.

    Args:
        dout: gradient of the loss with respect to `out`, (B, S, H, Dh). Not modified.

    Returns:
        dx: (B, S, K, Dh), for each head the sum over those that read it; `dout` itself without an index.
    """
    if cache is None:
        return dout
    index, K = cache
    # out[:, :, h] = x[:, :, index[h]]
    return ops.sum_heads(dout, index, K)


def sum_heads(x: NDArray, index: Sequence[int] | NDArray, K: int) -> NDArray:
    """Sum the heads that belong together, in their order.

    Args:
        x: (B, S, H, Dh), any float or complex dtype.
        index: where each head belongs, (H,), integers in 0 … K−1 in any order.
        K: number of sums.

    Returns:
        out: (B, S, K, Dh).

    Raises:
        ValueError: if `x` has not four axes, or `index` not one number in 0 … K−1 for each head.
    """
    check_sum_heads(x, index, K)
    B, S, _, Dh = x.shape
    out = np.zeros((B, S, K, Dh), x.dtype)
    for h, k in enumerate(index):
        out[:, :, k] += x[:, :, h]
    return out


def check_sum_heads(x: NDArray, index: Sequence[int] | NDArray, K: int) -> None:
    """Raise ValueError, naming the argument, unless `index` has a number in 0 … K−1 for each head of `x`."""
    check_numbers(index, K)
    check_shapes("index: H, x: B S H Dh", np.asarray(index), x)


def check_numbers(index: Sequence[int] | NDArray, K: int) -> None:
    """Raise ValueError unless `index` is (H,), integers in 0 … K−1."""
    numbers = np.asarray(index)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"index must be (H,), integers, got {numbers.dtype} {numbers.shape}")
    check_index(index, K)
