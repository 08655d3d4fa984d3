"""The second block of a layer: a feed-forward block, or the networks that its heads own.

y = x + dropout(f(norm(x)))

head networks   Σ_h gate_h · max(n pk_hᵀ + pb_h, 0) pv_h + bo      `ops.head_networks`
relu            max(n W1 + b1, 0) W2 + b2                          `ops.feedforward`
gelu            gelu(n W1 + b1) W2 + b2                            (GPT-2)
swiglu          (silu(n Wg + bg) · (n W1 + b1)) W2 + b2            (Shazeer 2020; Llama, without biases)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model import Parameters
from tinyprune.model.norms import norm_backward, norm_forward


def feedforward_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a feed-forward block's parameters, without its norm."""
    D, F = config.D, config.F
    inner = ("W1", "Wg") if config.feedforward == "swiglu" else ("W1",)
    shapes: dict[str, tuple[int, ...]] = {}
    for W, shape in [*((name, (D, F)) for name in inner), ("W2", (F, D))]:
        shapes[f"ffn.{W}"] = shape
        if config.bias != "none":
            shapes[f"ffn.b{W[1]}"] = shape[1:]
    return shapes


def feedforward_block_forward(
    x: NDArray,
    p: Parameters,
    gate: NDArray | None,
    scale: float,
    config: ModelConfig,
    ops: Backend,
    rng: np.random.Generator | None,
    frozen: bool = False,
) -> tuple[NDArray, dict[str, Any]]:
    """Compute the heads' networks or a feed-forward block: x (B, T, D) → y (B, T, D) and its cache.

    `gate` and `scale` are those of the attention block before it; only networks of heads have gates. `rng` is None in
    evaluation; `frozen` weights get no gradients. If heads have networks, `cache["networks"].r` holds their units
    before the gates, (B, T, H·N).
    """
    cache: dict[str, Any] = {}
    if config.networks:
        n, cache["ln"] = norm_forward(x, p, "net.ln", config, ops)
        weights = p["net.pk"], p["net.pb"], p["net.pv"], p["net.bo"]
        y, cache["networks"] = ops.head_networks_forward(n, *weights, gate, scale=scale, frozen=frozen)
    else:
        n, cache["ln"] = norm_forward(x, p, "ffn.ln", config, ops)
        if config.feedforward == "relu":
            weights = p["ffn.W1"], p["ffn.b1"], p["ffn.W2"], p["ffn.b2"]
            y, cache["ffn"] = ops.feedforward_forward(n, *weights, frozen=frozen)
        else:
            y = smooth_forward(n, p, cache, ops, frozen)
    y, cache["residual"] = ops.residual_forward(x, y, config.dropout, rng)
    return y, cache


def feedforward_block_backward(
    dy: NDArray, cache: dict[str, Any], ops: Backend
) -> tuple[NDArray, Parameters, NDArray | None]:
    """Return the gradients of `feedforward_block_forward`: dx (B, T, D), dp by short name, dgate (H,) or None.

    Those of frozen weights are None.
    """
    dp: Parameters = {}
    dgate: NDArray | None = None
    # y = x + dropout(f(n))
    dx, dblock = ops.residual_backward(dy, cache["residual"])
    if "networks" in cache:
        gradients = ops.head_networks_backward(dblock, cache["networks"])
        dn, dp["net.pk"], dp["net.pb"], dp["net.pv"], dp["net.bo"], dgate = gradients
    elif "ffn" in cache:
        dn, dp["ffn.W1"], dp["ffn.b1"], dp["ffn.W2"], dp["ffn.b2"] = ops.feedforward_backward(dblock, cache["ffn"])
    else:
        dn = smooth_backward(dblock, dp, cache, ops)
    # n = norm(x)
    dx_n, dnorm = norm_backward(dn, cache["ln"], "net.ln" if "networks" in cache else "ffn.ln", ops)
    return ops.add(dx, dx_n), dp | dnorm, dgate


def smooth_forward(n: NDArray, p: Parameters, cache: dict[str, Any], ops: Backend, frozen: bool) -> NDArray:
    """Return the block's output for n (B, T, D), with GELU or, where there is a Wg, SwiGLU; fill the cache."""
    a, cache["W1"] = ops.linear_forward(n, p["ffn.W1"], p.get("ffn.b1"), frozen=frozen)  # (B, T, F)
    if "ffn.Wg" in p:
        g, cache["Wg"] = ops.linear_forward(n, p["ffn.Wg"], p.get("ffn.bg"), frozen=frozen)
        h, cache["swiglu"] = ops.swiglu_forward(g, a)
    else:
        h, cache["gelu"] = ops.gelu_forward(a)
    y, cache["W2"] = ops.linear_forward(h, p["ffn.W2"], p.get("ffn.b2"), frozen=frozen)
    return y


def smooth_backward(dy: NDArray, dp: Parameters, cache: dict[str, Any], ops: Backend) -> NDArray:
    """Return dn of `smooth_forward`, (B, T, D), and add the weights' gradients to `dp`."""
    # y = h W2 + b2
    dh, dp["ffn.W2"], dp["ffn.b2"] = ops.linear_backward(dy, cache["W2"])
    if "Wg" in cache:
        # h = silu(g) a,  g = n Wg + bg
        dg, da = ops.swiglu_backward(dh, cache["swiglu"])
        dn_g, dp["ffn.Wg"], dp["ffn.bg"] = ops.linear_backward(dg, cache["Wg"])
    else:
        # h = gelu(a)
        da = ops.gelu_backward(dh, cache["gelu"])
    # a = n W1 + b1
    dn, dp["ffn.W1"], dp["ffn.b1"] = ops.linear_backward(da, cache["W1"])
    return ops.add(dn, dn_g) if "Wg" in cache else dn
