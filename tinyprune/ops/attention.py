"""Attention over context and persistent vectors, with gated heads: one operation for three kinds of Transformer.

With M = S − T keys of memory before the T of the segment, key j lies dist(i, j) = i + M − j before query i, and

    context score     s_ij = ((q_i + u)·k_j + (q_i + w)·r_dist(i,j)) / √Dh     where 0 ≤ dist(i, j) ≤ span, else −∞
    persistent score  s_in = (q_i · √Dh·pk_n) / √Dh = q_i · pk_n
    weights           a_i  = softmax over all context and persistent scores of query i together
    dropped           ã_i  = a_i · keep / (1 − dropout)
    head output       o_i  = Σ_j ã_ij v_j + Σ_n ã_in √N·pv_n
    out_i             = gate_h · scale · o_i                                    for each head h by itself

- plain causal Transformer (Vaswani et al. 2017): no r, u, w, pk, pv, and S = T;
- Transformer-XL (Dai et al. 2019, §3.3): memory and relative positions r with the biases u and w;
- All-attention (Sukhbaatar et al. 2019, eq. 9-11): persistent keys pk and values pv in the same softmax.

The gates and the scaling by heads / open heads are those of Shim et al. 2021. No gradient goes through `scale`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.dropout import check_rate, draw_keys, keep_mask
from tinyprune.ops.shapes import check_shapes, check_together


class AttentionCache(NamedTuple):
    """What `attention_backward` needs. `a` and `o` are also worth looking at for themselves."""

    q: NDArray  # (B, H, T, Dh), and so k and v with S
    k: NDArray
    v: NDArray
    r: NDArray | None  # (H, S, Dh), row c is distance S − 1 − c
    u: NDArray | None
    w: NDArray | None
    pk: NDArray | None
    pv: NDArray | None
    gate: NDArray | None
    scale: float
    a: NDArray  # attention weights before dropout, (B, H, T, S + N)
    keep: NDArray | None  # bool, shape of `a`
    dropout: float
    o: NDArray  # head outputs before their gates, (B, T, H, Dh)


def heads_first(x: NDArray) -> NDArray:
    """Swap the axes of positions and heads, (B, T, H, Dh) → (B, H, T, Dh) and back, without a copy."""
    return x.swapaxes(1, 2)


def transposed(x: NDArray) -> NDArray:
    """Transpose the matrices in the last two axes, without a copy."""
    return x.swapaxes(-1, -2)


def visible_keys(T: int, S: int, span: int | None) -> NDArray[np.bool_]:
    """Return which key each query sees, (T, S): those at distance 0 … span; for None all at distance ≥ 0 (causal)."""
    distance = np.arange(T)[:, None] + (S - T) - np.arange(S)
    visible = distance >= 0
    return visible if span is None else visible & (distance <= span)


def softmax(s: NDArray) -> NDArray:
    """Turn scores into weights along the last axis, in place. A score of −∞ becomes a weight of 0."""
    s -= s.real.max(-1, keepdims=True)  # exp cannot overflow then
    a = np.exp(s, out=s)
    a /= a.sum(-1, keepdims=True)
    return a


def attention_forward(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    r: NDArray | None = None,
    u: NDArray | None = None,
    w: NDArray | None = None,
    pk: NDArray | None = None,
    pv: NDArray | None = None,
    gate: NDArray | None = None,
    *,
    span: int | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray, AttentionCache]:
    """Attend from T queries to S ≥ T context keys and to N persistent ones.

    Args:
        q: queries, (B, T, H, Dh), any float or complex dtype.
        k, v: keys and values of memory and segment, (B, S, H, Dh); the last T belong to the queries' own positions.
        r: position keys, (S, H, Dh), row = distance; None for no relative positions.
        u, w: biases of content and position score, (H, Dh); given exactly if `r` is.
        pk, pv: persistent keys and values, (H, N, Dh); None for none.
        gate: one factor per head, (H,); None for all open.
        span: largest distance that a query sees ("same length": M), or None for plain causal.
        scale: output scaling c, the layer's heads / its open heads.
        dropout: share of attention weights to drop, 0 ≤ dropout < 1.
        rng: where the dropped weights are drawn from, or None for evaluation.

    Returns:
        out: (B, T, H, Dh), dtype of `q`.
        cache: what `attention_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together or `dropout` or `span` is out of range.
    """
    check_arguments(q, k, v, r, u, w, pk, pv, gate, span, dropout)
    B, T, H, Dh = q.shape
    S = k.shape[1]
    N = 0 if pk is None else pk.shape[1]
    root = 1 / math.sqrt(Dh)
    scale = float(scale)  # a NumPy scalar would make float64 of float32

    # scores: by content, by position, masked; and those of the persistent keys beside them
    qh, kh, vh = heads_first(q), heads_first(k), heads_first(v)
    s = np.empty((B, H, T, S + N), q.dtype)
    context, persistent = s[..., :S], s[..., S:]
    if r is None:
        np.matmul(qh * root, transposed(kh), out=context)
        rh = None
    else:
        assert u is not None and w is not None  # as `check_arguments` has seen
        np.matmul((qh + u[:, None]) * root, transposed(kh), out=context)
        rh = r.swapaxes(0, 1)[:, ::-1]
        P = np.zeros((B, H, T, S + 1), q.dtype)
        np.matmul((qh + w[:, None]) * root, transposed(rh), out=P[..., :S])
        context += by_key(P)
    np.copyto(context, -np.inf, where=~visible_keys(T, S, span))
    if pk is not None:
        np.matmul(qh, transposed(pk), out=persistent)

    # weights
    a = softmax(s)
    keep = None
    dropped = a
    if rng is not None and dropout > 0:
        keep = keep_mask(a.shape, dropout, draw_keys(rng))
        dropped = a * keep
        dropped /= 1 - dropout

    # head outputs, and their gates
    o = dropped[..., :S] @ vh
    if pv is not None:
        o += dropped[..., S:] @ (math.sqrt(N) * pv)
    o = np.ascontiguousarray(heads_first(o))
    out = o * scale
    if gate is not None:
        out *= gate[:, None]
    return out, AttentionCache(qh, kh, vh, rh, u, w, pk, pv, gate, scale, a, keep, dropout, o)


def attention_backward(dout: NDArray, cache: AttentionCache) -> tuple[Any, ...]:
    """Return the gradients of `attention_forward` in argument order; None for an argument that was None.

    Through the softmax, every weight's gradient reaches every score of its row:

        ds = a · (da − Σ_j da_j a_j).

    r, u, w, pk, pv and the gates serve all of the batch (u, w and gates all positions too): their gradients are sums
    over it. gate_h multiplies its head's whole output, so dgate_h = Σ dout · scale · o: the exact difference that the
    head makes, not an approximation.

    Args:
        dout: gradient of the loss with respect to `out`, (B, T, H, Dh). Not modified.

    Returns:
        dq: (B, T, H, Dh).   dk, dv: (B, S, H, Dh).   dr: (S, H, Dh).   du, dw: (H, Dh).
        dpk, dpv: (H, N, Dh).   dgate: (H,).
    """
    q, k, v, r, u, w, pk, pv, gate, scale, a, keep, dropout, o = cache
    B, H, T, Dh = q.shape
    S = k.shape[2]
    N = 0 if pk is None else pk.shape[1]
    root = 1 / math.sqrt(Dh)
    dr = du = dw = dpk = dpv = dgate = None

    # out = o * scale * gate
    do = dout * scale
    if gate is not None:
        dgate = (do * o).sum((0, 1, 3))
        do *= gate[:, None]
    do = heads_first(do)

    # o = ã[:S] v + ã[S:] √N pv
    dropped = a if keep is None else a * keep / (1 - dropout)
    dv = transposed(dropped[..., :S]) @ do
    da = np.empty_like(a)
    np.matmul(do, transposed(v), out=da[..., :S])
    if pv is not None:
        dpv = math.sqrt(N) * (transposed(dropped[..., S:]) @ do).sum(0)
        np.matmul(do, transposed(math.sqrt(N) * pv), out=da[..., S:])

    # ã = a * keep / (1 - dropout)
    if keep is not None:
        da *= keep
        da /= 1 - dropout

    # a = softmax(s); a masked key has a = 0, and so ds = 0
    da *= a
    ds = da - a * da.sum(-1, keepdims=True)
    ds_context, ds_persistent = ds[..., :S], ds[..., S:]

    # s[:S] = ((q + u)·k + (q + w)·r) / √Dh
    dq = (ds_context @ k) * root
    if r is None:
        dk = transposed(ds_context) @ (q * root)
    else:
        assert u is not None and w is not None
        dk = transposed(ds_context) @ ((q + u[:, None]) * root)
        du = dq.sum((0, 2))
        dP = np.zeros((B, H, T, S + 1), a.dtype)
        by_key(dP)[...] = ds_context
        dP = dP[..., :S]
        dq_position = (dP @ r) * root
        dw = dq_position.sum((0, 2))
        dq += dq_position
        dr = (transposed(dP) @ ((q + w[:, None]) * root)).sum(0)
        dr = np.ascontiguousarray(dr[:, ::-1].swapaxes(0, 1))

    # s[S:] = q·pk
    if pk is not None:
        dq += ds_persistent @ pk
        dpk = (transposed(ds_persistent) @ q).sum(0)

    dq, dk, dv = (np.ascontiguousarray(heads_first(g)) for g in (dq, dk, dv))
    return dq, dk, dv, dr, du, dw, dpk, dpv, dgate


def by_key(P: NDArray) -> NDArray:
    """View scores sorted by distance as scores sorted by key: the relative shift (Dai et al. 2019, app. B).

    Column c of P (B, H, T, S + 1) holds distance S − 1 − c, which for query i is key j = c + i − (T − 1). In memory,
    entry (i, c) lies at i(S + 1) + c = i·S + j + (T − 1): a matrix with rows of S that starts T − 1 later. Entries
    with j > i + M belong to other rows; they are masked.

    Returns:
        a *view* of P, (B, H, T, S).
    """
    B, H, T, S = P.shape[0], P.shape[1], P.shape[2], P.shape[3] - 1
    return P.reshape(B, H, T * (S + 1))[..., T - 1 : T - 1 + T * S].reshape(B, H, T, S)


def check_arguments(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    r: NDArray | None,
    u: NDArray | None,
    w: NDArray | None,
    pk: NDArray | None,
    pv: NDArray | None,
    gate: NDArray | None,
    span: int | None,
    dropout: float,
) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    check_together("r, u and w", r, u, w)
    check_together("pk and pv", pk, pv)
    check_shapes(
        "q: B T H Dh≥1, k: B S≥T H Dh, v: B S H Dh, r?: S H Dh, u?: H Dh, w?: H Dh, pk?: H N≥1 Dh, pv?: H N Dh, "
        "gate?: H",
        *(q, k, v, r, u, w, pk, pv, gate),
    )
    if span is not None and span < 0:
        raise ValueError(f"span must be at least 0 or None, got {span}")
    check_rate("dropout", dropout)
