"""Projections: queries for the segment, keys and values for all of its context.

    q = n[:, S−T:] Wq + bq        k = n Wk + bk        v = n Wv + bv        n (B, S, D)
    Wq (D, H·Dh)   Wk, Wv (D, K·Dh)   bq (H·Dh,)   bk, bv (K·Dh,)

Each has its weights and, or not, a bias. With fewer heads of keys and values than of queries, K < H, several queries
share a key (grouped-query attention, Ainslie et al. 2023); with K = H each has its own.

The three are one operation, because their three paths join in n: each adds its part of dn to what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def projections_forward(
    ops: Engine,
    n: NDArray,
    Wq: NDArray,
    Wk: NDArray,
    Wv: NDArray,
    T: int,
    bq: NDArray | None = None,
    bk: NDArray | None = None,
    bv: NDArray | None = None,
    *,
    frozen: bool = False,
) -> tuple[tuple[NDArray, NDArray, NDArray], tuple]:
    """Compute queries, keys and values.

    Args:
        ops: computes the products; `ops.projections_forward` passes itself.
        n: normalised memory and segment, (B, S, D), any float or complex dtype.
        Wq: weights, (D, H·Dh); H may be 0.
        Wk, Wv: weights, (D, K·Dh) each.
        T: positions of the segment, 0 ≤ T ≤ S: queries are made for the last T only.
        bq: bias, (H·Dh,), or None.
        bk, bv: biases, (K·Dh,), each or None.
        frozen: whether weights and biases get no gradients. Then n is not kept.

    Returns:
        q, k, v: (B, T, H·Dh), (B, S, K·Dh) and (B, S, K·Dh), dtype of `n`, as one tuple.
        cache: what `projections_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes(
        "n: B S D, Wq: D H·Dh, Wk: D K·Dh, Wv: D K·Dh, bq?: H·Dh, bk?: K·Dh, bv?: K·Dh", n, Wq, Wk, Wv, bq, bk, bv
    )
    S = n.shape[1]
    if not 0 <= T <= S:
        raise ValueError(f"T must be at least 0 and at most {S} to match n {n.shape}, got {T}")
    q, q_cache = ops.linear_forward(n[:, S - T :], Wq, bq, frozen=frozen)
    k, k_cache = ops.linear_forward(n, Wk, bk, frozen=frozen)
    v, v_cache = ops.linear_forward(n, Wv, bv, frozen=frozen)
    return (q, k, v), (q_cache, k_cache, v_cache)


def projections_backward(
    ops: Engine, dq: NDArray, dk: NDArray, dv: NDArray, cache: tuple
) -> tuple[NDArray, Any, Any, Any, Any, Any, Any]:
    """Return the gradients of `projections_forward` in argument order, without `T`.

    Args:
        dq: gradient of the loss with respect to `q`, (B, T, H·Dh). Not modified, and neither are the next two.
        dk, dv: with respect to `k` and `v`, (B, S, K·Dh).

    Returns:
        dn: (B, S, D), the sum of what comes through queries, keys and values.
        dWq: (D, H·Dh).   dWk, dWv: (D, K·Dh).   dbq: (H·Dh,).   dbk, dbv: (K·Dh,). Those of biases that are None, and
        all six if they are frozen, are None.
    """
    q_cache, k_cache, v_cache = cache
    S, T = dk.shape[1], dq.shape[1]
    # k = n Wk + bk,  v = n Wv + bv,  q = n[:, S-T:] Wq + bq: three paths join in n
    dn, dWk, dbk = ops.linear_backward(dk, k_cache)
    _, dWv, dbv = ops.linear_backward(dv, v_cache, onto=dn)
    _, dWq, dbq = ops.linear_backward(dq, q_cache, onto=dn[:, S - T :])
    return dn, dWq, dWk, dWv, dbq, dbk, dbv
