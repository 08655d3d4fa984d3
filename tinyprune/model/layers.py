"""The attention block of a layer, with its residual connection. All-attention has no other (see `feedforward`).

    y = x + dropout(Wo · o + bo)          o = attention(norm([m; x]))

`p` holds the layer's parameters under their short names, `ops` the backend's operations. The memory m was computed for
the previous segment; no gradient flows into it, but the weights that read it get theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model.norms import norm_backward, norm_forward
from tinyprune.model.parameters import Parameters


def attention_block_forward(
    x: NDArray,
    m: NDArray | None,
    p: Parameters,
    R: NDArray | None,
    gate: NDArray | None,
    scale: float,
    config: ModelConfig,
    ops: Backend,
    rng: np.random.Generator | None,
    groups: Sequence[int] | None = None,
    frozen: bool = False,
    keep: Callable[[NDArray, NDArray], None] | None = None,
) -> tuple[NDArray, NDArray, dict[str, Any]]:
    """Compute one attention block.

    Args:
        x: layer input, (B, T, D).
        m: layer inputs before the segment, (B, M', D) with M' ≤ M, or None.
        p: the layer's parameters; it has as many heads as Wq has columns, divided by Dh.
        R: position embeddings, (at least M' + T, D), row = distance; None for a model without relative positions.
        gate: (H,) or None.
        scale: output scaling c.
        config: of the model.
        ops: the backend's operations.
        rng: for dropout; None for evaluation.
        groups: for each head the number of the key-value head that it reads; None: each has its own.
        frozen: whether matrices and their biases get no gradients.
        keep: called with the keys and values that the heads read, (B, S, H, Dh); None for nobody.

    Returns:
        y: (B, T, D).
        context: m and x joined, (B, S, D); its end is the next segment's memory.
        cache: by operation. `cache["attention"].o` holds the head outputs before their gates, (B, T, H, Dh); the rest
            of it is private to the backend.
    """
    B, T, D = x.shape
    Dh = config.Dh
    H = p["Wq"].shape[1] // Dh
    cache: dict[str, Any] = {}

    context, cache["context"] = ops.context_forward(m, x)
    S = context.shape[1]
    n, cache["ln"] = norm_forward(context, p, "ln", config, ops)
    weights, biases = (p["Wq"], p["Wk"], p["Wv"]), (p.get("bq"), p.get("bk"), p.get("bv"))
    # q (B, T, H·Dh), k and v (B, S, K·Dh)
    (q, k, v), cache["projections"] = ops.projections_forward(n, *weights, T, *biases, frozen=frozen)
    q, k, v = q.reshape(B, T, H, Dh), k.reshape(B, S, -1, Dh), v.reshape(B, S, -1, Dh)
    if config.positions == "rotary":
        q, cache["rotary q"] = ops.rotary_forward(q, config.rope_base, S - T)
        k, cache["rotary k"] = ops.rotary_forward(k, config.rope_base)
    if groups is not None:
        k, cache["repeat k"] = ops.repeat_heads_forward(k, groups)
        v, cache["repeat v"] = ops.repeat_heads_forward(v, groups)
    if keep is not None:
        keep(k, v)
    r = None
    if R is not None:
        r, cache["Wr"] = ops.linear_forward(R[:S], p["Wr"], frozen=frozen)  # (S, H·Dh)
        r = r.reshape(S, H, Dh)
    o, cache["attention"] = ops.attention_forward(
        q,
        k,
        v,
        r,
        p.get("u"),
        p.get("w"),
        p.get("pk"),
        p.get("pv"),
        gate,
        span=config.span,
        scale=scale,
        dropout=config.dropout_attention,
        rng=rng,
    )  # (B, T, H, Dh)
    y, cache["Wo"] = ops.linear_forward(o.reshape(B, T, H * Dh), p["Wo"], p.get("bo"), frozen=frozen)  # (B, T, D)
    y, cache["residual"] = ops.residual_forward(x, y, config.dropout, rng)
    return y, context, cache


def attention_block_backward(
    dy: NDArray, cache: dict[str, Any], ops: Backend
) -> tuple[NDArray, Parameters, NDArray | None, NDArray | None]:
    """Return the gradients of `attention_block_forward`.

    Args:
        dy: gradient of the loss with respect to `y`, (B, T, D). Not modified.

    Returns:
        dx: (B, T, D).   dp: by short name, None for those that are frozen or absent.   dgate: (H,), or None.
        dR: of the rows of R that the block has read, (S, D), or None.
    """
    B, T, D = dy.shape
    dp: Parameters = {}
    # y = x + dropout(o Wo + bo)
    dx, dblock = ops.residual_backward(dy, cache["residual"])
    do, dp["Wo"], dp["bo"] = ops.linear_backward(dblock, cache["Wo"])
    del dblock
    H, Dh = cache["attention"].o.shape[2:]
    do = do.reshape(B, T, H, Dh)
    # o = attention(q, k, v, r, u, w, pk, pv, gate)
    dq, dk, dv, dr, du, dw, dpk, dpv, dgate = ops.attention_backward(do, cache["attention"])
    del do  # memory use peaks here, so arrays are freed as soon as possible; so are dq, dk and dv below
    dp |= {name: g for name, g in (("u", du), ("w", dw), ("pk", dpk), ("pv", dpv)) if g is not None}
    # r = R[:S] Wr
    dR = None
    S = dk.shape[1]
    if dr is not None:
        dR, dp["Wr"], _ = ops.linear_backward(dr.reshape(S, H * Dh), cache["Wr"])
    # k, v = repeat_heads(k), repeat_heads(v)
    if "repeat k" in cache:
        dk = ops.repeat_heads_backward(dk, cache["repeat k"])
        dv = ops.repeat_heads_backward(dv, cache["repeat v"])
    # q, k = rotary(q), rotary(k)
    if "rotary q" in cache:
        dq = ops.rotary_backward(dq, cache["rotary q"])
        dk = ops.rotary_backward(dk, cache["rotary k"])
    # q, k, v = n[:, S-T:] Wq + bq, n Wk + bk, n Wv + bv
    dq, dk, dv = dq.reshape(B, T, H * Dh), dk.reshape(B, S, -1), dv.reshape(B, S, -1)
    dn, *weights = ops.projections_backward(dq, dk, dv, cache["projections"])
    dp |= dict(zip(("Wq", "Wk", "Wv", "bq", "bk", "bv"), weights, strict=True))
    del dq, dk, dv
    # n = norm([m; x]); nothing flows into m
    dcontext, dnorm = norm_backward(dn, cache["ln"], "ln", ops)
    dp |= dnorm
    del dn
    dx = ops.add(dx, ops.context_backward(dcontext, cache["context"]))
    return dx, dp, dR, dgate
