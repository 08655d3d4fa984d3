"""Persistent memory: every head reads its own persistent vectors once more after attention, by a squared ReLU.

    z_h = (q_h + o_h) / rms(q_h + o_h)          rms(x) = sqrt(mean x² + eps)          q, o, z (..., H, Dh)
    r_h = max(z_h pk_hᵀ, 0)²                    pk_h, pv_h (N, Dh)                    r_h (..., N)
    y_h = o_h + r_h pv_h
    out_h = c · g_h · y_h

All-attention (Sukhbaatar et al. 2019) puts persistent vectors into the softmax over the context, where they must win
weight from the text before they can do anything. Here they are a small feed-forward net of the head's own, with keys in
and values out, that reads what the head asked for (its query) and what it found (its output). The ReLU is squared as in
Primer (So et al. 2021). The norm needs no scale of its own, which would be a factor of the keys' columns.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Kept(NamedTuple):
    """The cache. `y` holds the head outputs before their gates."""

    y: NDArray  # (..., H, Dh)
    z: NDArray  # (H, all positions, Dh)
    rms: NDArray  # (H, all positions, 1)
    p: NDArray  # max(z pkᵀ, 0), (H, all positions, N)
    pk: NDArray  # (H, N, Dh), and so pv
    pv: NDArray
    gate: NDArray | None
    scale: float


def persistent_memory_forward(
    q: NDArray,
    o: NDArray,
    pk: NDArray,
    pv: NDArray,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[NDArray, Kept]:
    """Let the heads read their persistent vectors, and gate the result.

    Args:
        q: queries, (..., H, Dh), any float or complex dtype.
        o: what attention made of them, without gates, (..., H, Dh).
        pk: keys, (H, N, Dh).   pv: values, (H, N, Dh).
        gate: (H,), or None for all ones.
        scale: output scaling c.
        eps: keeps the root away from 0.

    Returns:
        out: (..., H, Dh), dtype of `q`.
        cache: what `persistent_memory_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_arguments(q, o, pk, pv, gate)
    x = by_head(q + o)
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    z = x / rms
    a = z @ pk.swapaxes(1, 2)
    p = a * (a.real > 0)
    y = o + by_position(p**2 @ pv, q.shape)
    out = y * factors(gate, scale)
    return out, Kept(y, z, rms, p, pk, pv, gate, scale)


def persistent_memory_backward(dout: NDArray, cache: Kept) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray | None]:
    """Return the gradients of `persistent_memory_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (..., H, Dh). Not modified.

    Returns:
        dq, do: (..., H, Dh).   dpk, dpv: (H, N, Dh).   dgate: (H,), or None.
    """
    y, z, rms, p, pk, pv, gate, scale = cache
    # out_h = c g_h y_h
    dy = by_head(dout * factors(gate, scale))
    dgate = None if gate is None else scale * (by_head(dout) * by_head(y)).sum((1, 2))
    # y = o + r pv
    dr = dy @ pv.swapaxes(1, 2)
    dpv = (p**2).swapaxes(1, 2) @ dy
    # r = max(a, 0)²
    da = 2 * p * dr
    # a = z pkᵀ
    dz = da @ pk
    dpk = da.swapaxes(1, 2) @ z
    # z = x / rms(x)
    dx = (dz - z * (dz * z).mean(-1, keepdims=True)) / rms
    # x = q + o
    dq, do = by_position(dx, y.shape), by_position(dy + dx, y.shape)
    return dq, do, dpk, dpv, dgate


def by_head(x: NDArray) -> NDArray:
    """Return x (..., H, Dh) as (H, all positions, Dh)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).swapaxes(0, 1)


def by_position(x: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Reverse `by_head`: return x (H, all positions, Dh) as an array of `shape`."""
    return x.swapaxes(0, 1).reshape(shape)


def factors(gate: NDArray | None, scale: float) -> NDArray | float:
    """Return what multiplies each head's output, (H, 1), or a number."""
    return scale if gate is None else scale * gate[:, None]


def check_arguments(q: NDArray, o: NDArray, pk: NDArray, pv: NDArray, gate: NDArray | None) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    if q.ndim < 2:
        raise ValueError(f"q must be (..., H, Dh), got {q.shape}")
    H, Dh = q.shape[-2:]
    if pk.ndim != 3 or pk.shape[::2] != (H, Dh):
        raise ValueError(f"pk must be ({H}, N, {Dh}) to match q {q.shape}, got {pk.shape}")
    for name, value, shape in (("o", o, q.shape), ("pv", pv, pk.shape), ("gate", gate, (H,))):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
