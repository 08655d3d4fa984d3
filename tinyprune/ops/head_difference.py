"""Δ_h: what one head adds to its layer's output, and what a head's gate therefore does to the loss.

A layer's output is affine in the gates of its heads,

    y(g) = x + bo + Σ_h g_h · c · o^h Wo_h           o^h (B, T, Dh)   Wo_h = rows h·Dh … of Wo, (Dh, D)

so the output with head h minus the output without it is

    Δ_h = y(g_h = 1) − y(g_h = 0) = c · o^h Wo_h     (B, T, D)

and the chain rule gives, exactly and not to first order,

    ∂loss/∂g_h = Σ over batch, positions, features of (∂loss/∂y) · Δ_h.
"""

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes


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
    check_shapes("o: B T H Dh, Wo: H·Dh D", o, Wo)
    B, T, H, Dh = o.shape
    D = Wo.shape[1]
    per_head = o.transpose(2, 0, 1, 3).reshape(H, B * T, Dh)
    return scale * (per_head @ Wo.reshape(H, Dh, D)).reshape(H, B, T, D)
