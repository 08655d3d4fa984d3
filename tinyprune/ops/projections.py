"""Projections: queries for the segment, keys and values for all of its context.

    q = n[:, S−T:] Wq        k = n Wk        v = n Wv        n (B, S, D)   Wq, Wk, Wv (D, H·Dh)

The three are one operation, because a compiled kernel then reads n once, and sums dn where its three paths join.
"""

from numpy.typing import NDArray

from tinyprune.ops.linear import linear_backward, linear_forward


def projections_forward(
    n: NDArray, Wq: NDArray, Wk: NDArray, Wv: NDArray, T: int
) -> tuple[tuple[NDArray, NDArray, NDArray], tuple]:
    """Compute queries, keys and values.

    Args:
        n: normalised memory and segment, (B, S, D), any float or complex dtype.
        Wq, Wk, Wv: weights, (D, H·Dh) each; H may be 0.
        T: positions of the segment, 0 ≤ T ≤ S: queries are made for the last T only.

    Returns:
        q, k, v: (B, T, H·Dh), (B, S, H·Dh) and (B, S, H·Dh), dtype of `n`, as one tuple.
        cache: what `projections_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_arguments(n, Wq, Wk, Wv, T)
    S = n.shape[1]
    q, q_cache = linear_forward(n[:, S - T :], Wq)
    k, k_cache = linear_forward(n, Wk)
    v, v_cache = linear_forward(n, Wv)
    return (q, k, v), (q_cache, k_cache, v_cache)


def projections_backward(
    dq: NDArray, dk: NDArray, dv: NDArray, cache: tuple
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return the gradients of `projections_forward` in argument order, without `T`.

    Args:
        dq: gradient of the loss with respect to `q`, (B, T, H·Dh). Not modified, and neither are the next two.
        dk, dv: with respect to `k` and `v`, (B, S, H·Dh).

    Returns:
        dn: (B, S, D), the sum of what comes through queries, keys and values.   dWq, dWk, dWv: (D, H·Dh).
    """
    q_cache, k_cache, v_cache = cache
    S, T = dk.shape[1], dq.shape[1]
    # k = n Wk,  v = n Wv
    dn, dWk, _ = linear_backward(dk, k_cache)
    dn_v, dWv, _ = linear_backward(dv, v_cache)
    # q = n[:, S-T:] Wq
    dn_q, dWq, _ = linear_backward(dq, q_cache)
    dn += dn_v
    dn[:, S - T :] += dn_q
    return dn, dWq, dWk, dWv


def check_arguments(n: NDArray, Wq: NDArray, Wk: NDArray, Wv: NDArray, T: int) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    if n.ndim != 3:
        raise ValueError(f"n must be (B, S, D), got {n.shape}")
    _, S, D = n.shape
    if Wq.ndim != 2 or len(Wq) != D:
        raise ValueError(f"Wq must have shape ({D}, H·Dh) to match n {n.shape}, got {Wq.shape}")
    for name, W in (("Wk", Wk), ("Wv", Wv)):
        if W.shape != Wq.shape:
            raise ValueError(f"{name} must have the shape of Wq, {Wq.shape}, got {W.shape}")
    if not 0 <= T <= S:
        raise ValueError(f"T must be at least 0 and at most {S} to match n {n.shape}, got {T}")
