"""The two blocks of a layer, forward beside backward, in the order of the mathematics.

    attention block   y = x + dropout(o Wo + bo)      o = attention(norm([m; x])), each head times its gate
    second block      z = y + dropout(f(norm(y)))     f: see FEEDFORWARD; in a layer that has none z = y

Three rules keep these functions free of conditions:

    What a model does not have is None, and an operation that gets None returns its input: `rotary_forward(q, None)`.
    A layer's gates, and R, which all layers read, are among its parameters: p["gate"] and p["R"].
    A choice between operations is a table: NORMS (in `parameters`) and FEEDFORWARD.

The memory m was computed for the previous segment; no gradient flows into it, but the weights that read it get theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.model.parameters import NORMS, Parameters
from tinyprune.ops.engine import Engine


class Layer(NamedTuple):
    """What a layer computes with in one pass.

    Attributes:
        p: parameters by short name, without the heads that are left out; with "gate", (H,) in main memory, "ffn.gate",
            the same of blocks of units, and "R", (rows, D), a vector for each distance, where the model has them.
        scale, unit_scale: output scaling c of its heads, and of its blocks of units.
        groups: for each of the H heads the number of the key-value head, below K, that it reads; None: K = H.
        rng: for dropout; None for evaluation.
        frozen: whether matrices and their biases get no gradients.
        store_kv: called with the keys and values that the heads read, (B, S, H, Dh), which generation caches.
    """

    p: Parameters
    scale: float = 1.0
    unit_scale: float = 1.0
    groups: Sequence[int] | None = None
    rng: np.random.Generator | None = None
    frozen: bool = False
    store_kv: Callable[[NDArray, NDArray], None] | None = None


class AttentionBlockCache(NamedTuple):
    """One field for each line of `attention_block_forward` that has a cache."""

    context: tuple
    norm: tuple
    projections: tuple
    rotary_q: Any
    rotary_k: Any
    repeat_k: Any
    repeat_v: Any
    attention: Any  # the engine's; its `o` holds the outputs of heads before their gates, (B, T, H, Dh)
    Wo: tuple
    residual: tuple


def attention_block_forward(
    x: NDArray, m: NDArray | None, layer: Layer, config: ModelConfig, ops: Engine
) -> tuple[NDArray, NDArray, AttentionBlockCache]:
    """Compute one attention block.

    Args:
        x: layer input, (B, T, D).
        m: layer inputs before the segment, (B, M', D) with M' ≤ M, or None.
        layer: parameters and options.
        config: of the model.
        ops: the engine.

    Returns:
        y: (B, T, D).
        context: m and x one after the other, (B, S, D); its end is the next segment's memory.
        cache: what `attention_block_backward` needs.
    """
    p, T = layer.p, x.shape[1]
    context, joined = ops.context_forward(m, x)  # (B, S, D)
    n, norm = norm_forward(context, p, "ln", config, ops)
    # q (B, T, H, Dh), k and v (B, S, K, Dh); the first query has position S − T
    q, k, v, r, projections = heads_forward(n, T, layer, config, ops)
    q, rotary_q = ops.rotary_forward(q, config.rotary, k.shape[1] - T)
    k, rotary_k = ops.rotary_forward(k, config.rotary)
    k, repeat_k = ops.repeat_heads_forward(k, layer.groups)  # (B, S, H, Dh)
    v, repeat_v = ops.repeat_heads_forward(v, layer.groups)
    if layer.store_kv is not None:
        layer.store_kv(k, v)
    others = (p.get(name) for name in ("u", "w", "pk", "pv", "gate"))
    options: dict[str, Any] = {"span": config.span, "scale": layer.scale}
    options |= {"dropout": config.dropout_attention, "rng": layer.rng}
    o, attention = ops.attention_forward(q, k, v, r, *others, **options)  # (B, T, H, Dh)
    a, Wo = ops.linear_forward(merged(o), p["Wo"], p.get("bo"), frozen=layer.frozen)  # (B, T, D)
    y, residual = ops.residual_forward(x, a, config.dropout, layer.rng)
    caches = joined, norm, projections, rotary_q, rotary_k, repeat_k, repeat_v, attention, Wo, residual
    return y, context, AttentionBlockCache(*caches)


def attention_block_backward(
    dy: NDArray, cache: AttentionBlockCache, config: ModelConfig, ops: Engine
) -> tuple[NDArray, Parameters]:
    """Return the gradients of `attention_block_forward`; a comment quotes each line that is differentiated.

    Args:
        dy: gradient of the loss with respect to `y`, (B, T, D). Not modified.

    Returns:
        dx: (B, T, D).   grads: by short name, "gate" and "R" among them; None for those that are frozen or absent.
    """
    # y = x + dropout(o Wo + bo)
    dx, da = ops.residual_backward(dy, cache.residual)
    do, dWo, dbo = ops.linear_backward(da, cache.Wo)
    # o = attention(q, k, v, r, u, w, pk, pv, gate)
    dq, dk, dv, dr, *others = ops.attention_backward(by_head(do, config.Dh), cache.attention)
    del da, do  # memory use peaks here, so arrays are freed as soon as possible
    grads = dict(zip(("u", "w", "pk", "pv", "gate"), others, strict=True)) | {"Wo": dWo, "bo": dbo}
    # k, v = repeat_heads(k), repeat_heads(v)
    dk = ops.repeat_heads_backward(dk, cache.repeat_k)
    dv = ops.repeat_heads_backward(dv, cache.repeat_v)
    # q, k = rotary(q), rotary(k)
    dq, dk = ops.rotary_backward(dq, cache.rotary_q), ops.rotary_backward(dk, cache.rotary_k)
    # q, k, v, r = n[:, S-T:] Wq + bq, n Wk + bk, n Wv + bv, R[:S] Wr
    dn, dheads = heads_backward(dq, dk, dv, dr, cache.projections, config, ops)
    del dq, dk, dv
    # n = norm([m; x]); nothing flows into m
    dcontext, dnorm = norm_backward(dn, cache.norm, "ln", config, ops)
    dx = ops.add(dx, ops.context_backward(dcontext, cache.context))
    return dx, grads | dheads | dnorm


class SecondBlockCache(NamedTuple):
    """One field for each line of `second_block_forward`."""

    norm: tuple
    inside: Any  # of f; for networks its `r` holds their units before the gates, (..., H·N)
    residual: tuple


def second_block_forward(
    y: NDArray, layer: Layer, config: ModelConfig, ops: Engine
) -> tuple[NDArray, SecondBlockCache | None]:
    """Compute the feed-forward block, or the networks of the heads: y (..., D) → z (..., D) and its cache."""
    if config.second is None:
        return y, None
    f = FEEDFORWARD[config.second]
    n, norm = norm_forward(y, layer.p, f.norm, config, ops)
    h, inside = f.forward(n, layer, ops)
    z, residual = ops.residual_forward(y, h, config.dropout, layer.rng)
    return z, SecondBlockCache(norm, inside, residual)


def second_block_backward(
    dz: NDArray, cache: SecondBlockCache | None, config: ModelConfig, ops: Engine
) -> tuple[NDArray, Parameters]:
    """Return the gradients of `second_block_forward`: dy (B, T, D), and those of the parameters by short name."""
    if cache is None:
        return dz, {}
    f = FEEDFORWARD[config.second]
    # z = y + dropout(f(n))
    dy, dh = ops.residual_backward(dz, cache.residual)
    dn, grads = f.backward(dh, cache.inside, ops)
    # n = norm(y)
    dy_n, dnorm = norm_backward(dn, cache.norm, f.norm, config, ops)
    return ops.add(dy, dy_n), grads | dnorm


def networks_forward(n: NDArray, layer: Layer, ops: Engine) -> tuple[NDArray, Any]:
    """Compute Σ_h c gate_h · max(n pk_hᵀ + pb_h, 0) pv_h + bo, the networks of the heads (`ops.head_networks`)."""
    p = layer.p
    weights = p["net.pk"], p["net.pb"], p["net.pv"], p["net.bo"], p.get("gate")
    return ops.head_networks_forward(n, *weights, scale=layer.scale, frozen=layer.frozen)


def networks_backward(dh: NDArray, cache: Any, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `networks_forward`: dn, and those of the parameters."""
    dn, *grads = ops.head_networks_backward(dh, cache)
    return dn, dict(zip(("net.pk", "net.pb", "net.pv", "net.bo", "gate"), grads, strict=True))


def relu_forward(n: NDArray, layer: Layer, ops: Engine) -> tuple[NDArray, Any]:
    """Compute max(n W1 + b1, 0) W2 + b2 (`ops.feedforward`)."""
    p = layer.p
    weights = p["ffn.W1"], p["ffn.b1"], p["ffn.W2"], p["ffn.b2"], p.get("ffn.gate")
    return ops.feedforward_forward(n, *weights, scale=layer.unit_scale, frozen=layer.frozen)


def relu_backward(dh: NDArray, cache: Any, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `relu_forward`: dn, and those of the parameters."""
    dn, *grads = ops.feedforward_backward(dh, cache)
    return dn, dict(zip(("ffn.W1", "ffn.b1", "ffn.W2", "ffn.b2", "ffn.gate"), grads, strict=True))


def output_forward(h: NDArray, layer: Layer, ops: Engine) -> tuple[NDArray, Any]:
    """Compute h W2 + b2 from the units h (..., F), each block of them times its gate (`ops.blocks`)."""
    weights = layer.p["ffn.W2"], layer.p.get("ffn.b2"), layer.p.get("ffn.gate")
    return ops.blocks_forward(h, *weights, scale=layer.unit_scale, frozen=layer.frozen)


def output_backward(dout: NDArray, cache: Any, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `output_forward`: dh, and those of the parameters."""
    dh, *grads = ops.blocks_backward(dout, cache)
    return dh, dict(zip(("ffn.W2", "ffn.b2", "ffn.gate"), grads, strict=True))


def gelu_forward(n: NDArray, layer: Layer, ops: Engine) -> tuple[NDArray, Any]:
    """Compute gelu(n W1 + b1) W2 + b2 (GPT-2)."""
    a, inner = ops.linear_forward(n, layer.p["ffn.W1"], layer.p.get("ffn.b1"), frozen=layer.frozen)
    h, activation = ops.gelu_forward(a)
    out, outer = output_forward(h, layer, ops)
    return out, (inner, activation, outer)


def gelu_backward(dout: NDArray, cache: Any, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `gelu_forward`: dn, and those of the parameters."""
    inner, activation, outer = cache
    # out = h W2 + b2
    dh, grads = output_backward(dout, outer, ops)
    # h = gelu(a)
    da = ops.gelu_backward(dh, activation)
    # a = n W1 + b1
    dn, dW1, db1 = ops.linear_backward(da, inner)
    return dn, grads | {"ffn.W1": dW1, "ffn.b1": db1}


def swiglu_forward(n: NDArray, layer: Layer, ops: Engine) -> tuple[NDArray, Any]:
    """Compute (silu(n Wg + bg) · (n W1 + b1)) W2 + b2 (Shazeer 2020; Llama, without biases)."""
    p = layer.p
    a, inner = ops.linear_forward(n, p["ffn.W1"], p.get("ffn.b1"), frozen=layer.frozen)  # (..., F)
    g, gate = ops.linear_forward(n, p["ffn.Wg"], p.get("ffn.bg"), frozen=layer.frozen)
    h, activation = ops.swiglu_forward(g, a)
    out, outer = output_forward(h, layer, ops)
    return out, (inner, gate, activation, outer)


def swiglu_backward(dout: NDArray, cache: Any, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `swiglu_forward`: dn, and those of the parameters."""
    inner, gate, activation, outer = cache
    # out = h W2 + b2
    dh, grads = output_backward(dout, outer, ops)
    # h = silu(g) a
    dg, da = ops.swiglu_backward(dh, activation)
    # g = n Wg + bg,  a = n W1 + b1
    dn_g, dWg, dbg = ops.linear_backward(dg, gate)
    dn, dW1, db1 = ops.linear_backward(da, inner)
    grads |= {"ffn.W1": dW1, "ffn.b1": db1, "ffn.Wg": dWg, "ffn.bg": dbg}
    return ops.add(dn, dn_g), grads


class FeedForward(NamedTuple):
    """One kind of second block: the prefix of its norm's parameters, its two functions, and the last matrix.

    `units` takes from the cache of the forward pass what the last matrix, `last`, is multiplied by, before gates. The
    units of heads' networks are (…, H·N).
    """

    norm: str
    forward: Callable[[NDArray, Layer, Engine], tuple[NDArray, Any]]
    backward: Callable[[NDArray, Any, Engine], tuple[NDArray, Parameters]]
    last: str = "ffn.W2"
    units: Callable[[Any], NDArray] = lambda inside: inside[-1].h


FEEDFORWARD: dict[str | None, FeedForward] = {
    "networks": FeedForward("net.ln", networks_forward, networks_backward, "net.pv", lambda inside: inside.r),
    "relu": FeedForward("ffn.ln", relu_forward, relu_backward),
    "gelu": FeedForward("ffn.ln", gelu_forward, gelu_backward),
    "swiglu": FeedForward("ffn.ln", swiglu_forward, swiglu_backward),
}


def norm_forward(x: NDArray, p: Parameters, prefix: str, config: ModelConfig, ops: Engine) -> tuple[NDArray, tuple]:
    """Normalise x (…, D) over its last axis, by the operation that `config.norm` names; return (…, D) and the cache.

    `prefix` says where: "ln" before attention and after the last layer, "ffn.ln" or "net.ln" before the second block,
    "q_norm" and "k_norm" of each head, over its Dh features.
    """
    weights = (p[f"{prefix}.{name}"] for name in NORMS[config.norm])
    return getattr(ops, f"{config.norm}_forward")(x, *weights, config.norm_eps)


def norm_backward(
    dout: NDArray, cache: tuple, prefix: str, config: ModelConfig, ops: Engine
) -> tuple[NDArray, Parameters]:
    """Return the gradients of `norm_forward`: dx (…, D), and those of the parameters by name."""
    # out = norm(x)
    dx, *grads = getattr(ops, f"{config.norm}_backward")(dout, cache)
    return dx, {f"{prefix}.{name}": g for name, g in zip(NORMS[config.norm], grads, strict=True)}


WEIGHTS, BIASES = ("Wq", "Wk", "Wv", "Wr"), ("bq", "bk", "bv")


def heads_forward(
    n: NDArray, T: int, layer: Layer, config: ModelConfig, ops: Engine
) -> tuple[NDArray, NDArray, NDArray, NDArray | None, tuple]:
    """Project n (B, S, D) for the heads (`ops.projections`); with `config.head_norms` each query and key is normalised.

    Returns:
        q: of the last T positions, (B, T, H, Dh).   k, v: of all, (B, S, K, Dh).
        r: R[:S] Wr, position keys of a context of S, (S, H, Dh); None without R.
        cache: what `heads_backward` needs.
    """
    R, rows = layer.p.get("R"), 0
    if R is not None:
        R, rows = R[: n.shape[1]], len(R)
    weights, biases = ([layer.p.get(name) for name in names] for names in (WEIGHTS, BIASES))
    outs, cache = ops.projections_forward(n, R, weights, biases, T, frozen=layer.frozen)
    q, k, v, *r = (by_head(x, config.Dh) for x in outs)
    norms: list[Any] = []
    if config.head_norms:
        q, norm_q = norm_forward(q, layer.p, "q_norm", config, ops)
        k, norm_k = norm_forward(k, layer.p, "k_norm", config, ops)
        norms = [norm_q, norm_k]
    return q, k, v, r[0] if r else None, (cache, rows, norms)


def heads_backward(
    dq: NDArray, dk: NDArray, dv: NDArray, dr: NDArray | None, cache: tuple, config: ModelConfig, ops: Engine
) -> tuple[NDArray, Parameters]:
    """Return the gradients of `heads_forward`: dn, and those of the parameters. Rows of R that were not read get 0."""
    projections, rows, norms = cache
    dnorms: Parameters = {}
    # q, k = norm(q), norm(k)
    if norms:
        dq, dnorm_q = norm_backward(dq, norms[0], "q_norm", config, ops)
        dk, dnorm_k = norm_backward(dk, norms[1], "k_norm", config, ops)
        dnorms = dnorm_q | dnorm_k
    # q, k, v, r = n[:, S-T:] Wq + bq, n Wk + bk, n Wv + bv, R[:S] Wr
    douts = [merged(x) for x in (dq, dk, dv, dr) if x is not None]
    dn, dR, *grads = ops.projections_backward(douts, projections)
    if dR is not None and len(dR) < rows:
        dR = ops.put_slices(dR, range(len(dR)), 0, rows)
    return dn, {"R": dR} | dict(zip(WEIGHTS + BIASES, grads, strict=True)) | dnorms


def by_head(x: NDArray, Dh: int) -> NDArray:
    """Split the last axis by head: (..., H·Dh) → (..., H, Dh)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // Dh, Dh)


def merged(x: NDArray) -> NDArray:
    """Merge the heads: (..., H, Dh) → (..., H·Dh)."""
    return x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))
