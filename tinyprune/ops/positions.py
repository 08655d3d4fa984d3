"""Positions: add to every place its learned vector, as the plain Transformer does. (Gehring et al. 2017, §3.1)

    out_bt = x_bt + P_t            x (B, T, D)   P (rows, D), rows ≥ T

A text shorter than the table uses its first T rows; the others get no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def positions_forward(ops: Engine, x: NDArray, P: NDArray | None) -> tuple[NDArray, Any]:
    """Add the first T rows of `P` to every text of the batch.

    Args:
        ops: adds; `ops.positions_forward` passes itself.
        x: (B, T, D), any float or complex dtype.
        P: a vector for each place, (rows, D), rows ≥ T. None hands on `x`.

    Returns:
        out: (B, T, D), dtype of `x`; a new array, or `x` itself without positions.
        cache: what `positions_backward` needs.

    Raises:
        ValueError: if `P` has fewer rows than `x` places, or another width.
    """
    if P is None:
        return x, None
    check_shapes("x: B T D, P: ≥T D", x, P)
    B, T, D = x.shape
    return ops.add(x, ops.take_slices(P[:T].reshape(1, T, D), [0] * B, 0)), len(P)


def positions_backward(ops: Engine, dout: NDArray, cache: Any) -> tuple[NDArray, NDArray | None]:
    """Return the gradients of `positions_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (B, T, D). Not modified.

    Returns:
        dx: `dout` itself, not a copy. Do not modify it.
        dP: (rows, D), the sum over the batch; zeros from row T on. None without positions.
    """
    if cache is None:
        return dout, None
    B, T, D = dout.shape
    # out = x + P[:T]
    dP = ops.column_sums(dout.reshape(B, T * D)).reshape(T, D)
    return dout, ops.put_slices(dP, range(T), 0, cache)
