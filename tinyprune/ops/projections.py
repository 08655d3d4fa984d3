"""Projections: queries for the segment, keys and values for all of its context, and position keys for its distances.

    q = n[:, S−T:] Wq + bq        k = n Wk + bk        v = n Wv + bv        r = R Wr        n (B, S, D)   R (S, D)
    Wq, Wr (D, H·Dh)   Wk, Wv (D, K·Dh)   bq (H·Dh,)   bk, bv (K·Dh,)

Each has its weights and, or not, a bias; models without relative positions have no r. With fewer heads of keys and
values than of queries, K < H, several queries share a key (grouped-query attention, Ainslie et al. 2023); with K = H
each has its own.

They are one operation, because three of their paths join in n: each adds its part of dn to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine

SHAPES = "n: B S D, R?: S D, Wq: D H·Dh, Wk: D K·Dh, Wv: D K·Dh, Wr?: D H·Dh, bq?: H·Dh, bk?: K·Dh, bv?: K·Dh"


def projections_forward(
    ops: Engine,
    n: NDArray,
    R: NDArray | None,
    weights: Sequence[Any],
    biases: Sequence[NDArray | None],
    T: int,
    *,
    frozen: bool = False,
) -> tuple[list[NDArray], tuple]:
    """Compute queries, keys, values and position keys.

    Args:
        ops: computes the products; `ops.projections_forward` passes itself.
        n: normalised memory and segment, (B, S, D), any float or complex dtype.
        R: a vector for each distance, (S, D), or None.
        weights: Wq, Wk, Wv and Wr, with these shapes; H may be 0. Wr is None if R is.
        biases: bq, bk and bv, each or None.
        T: positions of the segment, 0 ≤ T ≤ S: queries are made for the last T only.
        frozen: whether R, weights and biases get no gradients. Then n is not kept.

    Returns:
        outs: q (B, T, H·Dh), k and v (B, S, K·Dh), and with R also r (S, H·Dh), dtype of `n`.
        cache: what `projections_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes(SHAPES, n, R, *weights, *biases)
    S = n.shape[1]
    if not 0 <= T <= S:
        raise ValueError(f"T must be at least 0 and at most {S} to match n {n.shape}, got {T}")
    if (R is None) != (weights[-1] is None):
        raise ValueError("R and Wr must both be given, or both be None")
    inputs = [n[:, S - T :], n, n, R]
    products = zip(inputs, weights, [*biases, None], strict=True)
    outs = ops.matmuls((x, W, b) for x, W, b in products if x is not None)
    return outs, (None if frozen else inputs, weights, biases)


def projections_backward(ops: Engine, douts: Sequence[NDArray], cache: tuple) -> tuple[Any, ...]:
    """Return the gradients of `projections_forward` in argument order, without `T`.

    Args:
        douts: gradients of the loss with respect to `outs`. Not modified.

    Returns:
        dn: (B, S, D), the sum of what comes through queries, keys and values.
        dR, dWq, dWk, dWv, dWr, dbq, dbk, dbv: None for what was None; all are None if they are frozen.
    """
    inputs, (Wq, Wk, Wv, Wr), biases = cache
    dq, dk, dv, *dr = douts
    # k = n Wk + bk,  r = R Wr
    dn, *dR = ops.matmuls([(dk, Wk.T, None), *((g, Wr.T, None) for g in dr if inputs is not None)])
    # v = n Wv + bv,  q = n[:, S-T:] Wq + bq: three paths join in n
    ops.matmul(dv, Wv.T, onto=dn)
    ops.matmul(dq, Wq.T, onto=dn[:, dk.shape[1] - dq.shape[1] :])
    if inputs is None:
        return dn, None, None, None, None, None, None, None, None
    summed = (dout for dout, b in zip(douts, biases, strict=False) if b is not None)
    dweights, dbiases = ops.weight_gradients(zip(inputs, douts, strict=False), summed)
    dbq, dbk, dbv = (None if b is None else dbiases.pop(0) for b in biases)
    dWq, dWk, dWv, dWr = dweights if dr else [*dweights, None]
    return dn, dR[0] if dR else None, dWq, dWk, dWv, dWr, dbq, dbk, dbv
