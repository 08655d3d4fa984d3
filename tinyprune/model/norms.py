"""The normalisation before every block and after the last one, and the names of its parameters.

`prefix` says where: "ln" before attention and after the last layer, "ffn.ln" before the feed-forward block. The
parameters are PREFIX.scale and PREFIX.bias, (D,).
"""

from __future__ import annotations

from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model import Parameters


def norm_shapes(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a norm's parameters."""
    return {f"{prefix}.scale": (config.D,), f"{prefix}.bias": (config.D,)}


def norm_forward(x: NDArray, p: Parameters, prefix: str, config: ModelConfig, ops: Backend) -> tuple[NDArray, tuple]:
    """Normalise x (…, D) over its last axis; return (…, D) and the cache."""
    return ops.layernorm_forward(x, p[f"{prefix}.scale"], p[f"{prefix}.bias"])


def norm_backward(dout: NDArray, cache: tuple, prefix: str, ops: Backend) -> tuple[NDArray, Parameters]:
    """Return the gradients of `norm_forward`: dx (…, D), and those of the parameters by name."""
    dx, dscale, dbias = ops.layernorm_backward(dout, cache)
    return dx, {f"{prefix}.scale": dscale, f"{prefix}.bias": dbias}
