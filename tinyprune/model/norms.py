"""The normalisation before every block and after the last one: which one, and the names of its parameters.

`prefix` says where: "ln" before attention and after the last layer, "ffn.ln" before the feed-forward block. The
parameters are PREFIX.scale and, for LayerNorm, PREFIX.bias, (D,).
"""

from __future__ import annotations

from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model import Parameters


def norm_shapes(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a norm's parameters."""
    names = ("scale",) if config.norm == "rmsnorm" else ("scale", "bias")
    return {f"{prefix}.{name}": (config.D,) for name in names}


def norm_forward(x: NDArray, p: Parameters, prefix: str, config: ModelConfig, ops: Backend) -> tuple[NDArray, tuple]:
    """Normalise x (…, D) over its last axis; return (…, D) and the cache."""
    if config.norm == "rmsnorm":
        out, cache = ops.rmsnorm_forward(x, p[f"{prefix}.scale"], config.norm_eps)
    else:
        out, cache = ops.layernorm_forward(x, p[f"{prefix}.scale"], p[f"{prefix}.bias"], config.norm_eps)
    return out, (config.norm, cache)


def norm_backward(dout: NDArray, cache: tuple, prefix: str, ops: Backend) -> tuple[NDArray, Parameters]:
    """Return the gradients of `norm_forward`: dx (…, D), and those of the parameters by name."""
    norm, cache = cache
    # out = norm(x)
    if norm == "rmsnorm":
        dx, dscale = ops.rmsnorm_backward(dout, cache)
        return dx, {f"{prefix}.scale": dscale}
    dx, dscale, dbias = ops.layernorm_backward(dout, cache)
    return dx, {f"{prefix}.scale": dscale, f"{prefix}.bias": dbias}
