"""Δ_h: what one head adds to its layer's output, and what a head's gate therefore does to the loss.

A layer's output is affine in the gates of its heads,

    y(g) = x + bo + Σ_h g_h · c · o^h Wo_h           o^h (B, T, Dh)   Wo_h = rows h·Dh … of Wo, (Dh, D)

so the output with head h minus the output without it is

    Δ_h = y(g_h = 1) − y(g_h = 0) = c · o^h Wo_h     (B, T, D)

and the chain rule gives, exactly and not to first order,

    ∂loss/∂g_h = Σ over batch, positions, features of (∂loss/∂y) · Δ_h.
"""

from numpy.typing import NDArray


def check_output_projection(o: NDArray, Wo: NDArray) -> None:
    """Raise ValueError unless Wo (H·Dh, D) fits o (B, T, H, Dh)."""
    H, Dh = o.shape[2:]
    if Wo.ndim != 2 or Wo.shape[0] != H * Dh:
        raise ValueError(f"Wo must have shape ({H * Dh}, D) to match o {o.shape}, got {Wo.shape}")


def head_difference(o: NDArray, Wo: NDArray, scale: float = 1.0) -> NDArray:
    """Compute Δ_h of every head of a layer.

    Args:
        o: head outputs before their gates, (B, T, H, Dh), `AttentionCache.o`.
        Wo: output projection, (H·Dh, D).
        scale: output scaling c.

    Returns:
        delta: (H, B, T, D), dtype of `o`.

    Raises:
        ValueError: if Wo has not Dh rows for each head of o.
    """
    B, T, H, Dh = o.shape
    check_output_projection(o, Wo)
    D = Wo.shape[1]
    per_head = o.transpose(2, 0, 1, 3).reshape(H, B * T, Dh)
    return scale * (per_head @ Wo.reshape(H, Dh, D)).reshape(H, B, T, D)
