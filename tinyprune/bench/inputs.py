"""The same random inputs for every contender: each process draws its own from the same seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench.shapes import ModelShape
from tinyprune.model.parameters import Parameters, init_parameters
from tinyprune.model.transformer import Memory


def matrices(m: int, k: int, n: int, layout: str) -> tuple[NDArray, NDArray]:
    """Two float32 matrices as they lie in memory; `layout` says how they are multiplied into (m, n).

    "A·B": (m, k), (k, n).   "A·Bᵀ": (m, k), (n, k).   "Aᵀ·B": (k, m), (k, n).
    """
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m) if layout == "Aᵀ·B" else (m, k), np.float32)
    b = rng.standard_normal((n, k) if layout == "A·Bᵀ" else (k, n), np.float32)
    return a, b


def attention_arguments(shape: ModelShape) -> tuple[dict[str, NDArray], NDArray]:
    """Array arguments of `ops.attention_forward` by name, float32, without those that the model lacks; and dout."""
    c, B = shape.config, shape.B
    rng = np.random.default_rng(0)
    S, H, Dh = c.M + c.T, c.H, c.Dh
    shapes = {"q": (B, c.T, H, Dh), "k": (B, S, H, Dh), "v": (B, S, H, Dh)}
    if c.relative:
        shapes |= {"r": (S, H, Dh), "u": (H, Dh), "w": (H, Dh)}
    if c.N:
        shapes |= {"pk": (H, c.N, Dh), "pv": (H, c.N, Dh)}
    arrays = {name: rng.standard_normal(size, np.float32) for name, size in shapes.items()}
    for name in {"pk", "pv"} & arrays.keys():  # they are multiplied by √Dh and √N in use
        arrays[name] *= np.float32(0.1)
    return arrays, rng.standard_normal((B, c.T, H, Dh), np.float32)


def parameters(shape: ModelShape) -> Parameters:
    """float32 parameters; biases are moved off zero, so that a contender that forgets them is found out."""
    rng = np.random.default_rng(0)
    params = init_parameters(shape.config, rng)
    return {name: x + 0.02 * rng.standard_normal(x.shape, np.float32) for name, x in params.items()}


def batch(shape: ModelShape) -> tuple[NDArray, NDArray, Memory | None]:
    """Tokens and the tokens that follow them, (B, T) int64, and memory, (B, M, D) float32 for each layer or None."""
    c, B = shape.config, shape.B
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, c.V, (2, B, c.T))
    memory = [rng.standard_normal((B, c.M, c.D), np.float32) for _ in range(c.L)] if c.M else None
    return ids, targets, memory


def tokens(shape: ModelShape, n: int) -> NDArray:
    """A text to read one token at a time, (n,) int64."""
    return np.random.default_rng(1).integers(0, shape.config.V, n)
