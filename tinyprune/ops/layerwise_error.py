"""Layer-wise error: how far a layer's output with gated heads is from its output with all heads.

    error = ‖y_gated − y_full‖² / ‖y_full − x‖²           norms over batch, positions and features

Both outputs are affine in the heads' differences Δ_h = o^h Wo_h (see head_difference):

    y_gated − y_full = Σ_h e_h Δ_h                        e_h = c · g_h − 1
    y_full − x       = Σ_h Δ_h + bo

so everything needed from the big arrays is the (H, H) matrix of inner products G = ⟨Δ_h, Δ_h'⟩ and, for the
denominator, the products with bo:

    error = eᵀ G e / (Σ G + 2 Σ_h ⟨Δ_h, bo⟩ + B·T·‖bo‖²)

G itself needs no Δ: summed over batch and positions, ⟨o_a Wo_a, o_b Wo_b⟩ = (oᵀo)_ab · (Wo Woᵀ)_ab entry by entry.

It is a loss for the gates alone: o, Wo, bo and c count as constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def layerwise_error_forward(
    ops: Engine, gate: NDArray, o: NDArray, Wo: NDArray, bo: NDArray, scale: float = 1.0
) -> tuple[np.inexact, tuple]:
    """Compute the relative squared error that the gates make in their layer's output.

    Args:
        ops: computes the products; `ops.layerwise_error_forward` passes itself.
        gate: (H,), any float or complex dtype, in main memory whatever the engine, as the results are.
        o: head outputs before their gates, (B, T, H, Dh).
        Wo: output projection, (H·Dh, D).   bo: its bias, (D,).
        scale: output scaling c of the gated layer; the full layer has 1.

    Returns:
        error: scalar, dtype of `gate`; 0 when all gates are 1 and c = 1, and about 1 when all are 0.
        cache: what `layerwise_error_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes("o: B T H Dh, Wo: H·Dh D, bo: D, gate: H", o, Wo, bo, gate)
    B, T, H, Dh = o.shape
    rows = o.reshape(B * T, H * Dh)
    scale = float(scale)
    # the products of the large arrays: oᵀo and Wo Woᵀ, (H·Dh, H·Dh), and o Wo summed over all positions, (D,)
    oo, WW, outputs = ops.weight_gradient(rows, rows), ops.matmul(Wo, Wo.T), ops.matmul(ops.column_sums(rows), Wo)
    oo, WW, outputs, bo = (ops.to_host(x) for x in (oo, WW, outputs, bo))
    G = (oo * WW).reshape(H, Dh, H, Dh).sum((1, 3))
    full = G.sum() + 2 * outputs @ bo + B * T * (bo @ bo)
    if full == 0:
        full = 1.0  # a layer that adds nothing, with all heads or with none, makes no error
    e = scale * gate - 1
    return (e @ G @ e) / full, (e, G, full, scale)


def layerwise_error_backward(dout: float | np.inexact, cache: tuple) -> NDArray:
    """Return the gradient of `layerwise_error_forward` with respect to `gate`, in main memory.

        dgate = dout · 2c · G e / ‖y_full − x‖²

    Args:
        dout: gradient with respect to `error`, scalar.

    Returns:
        dgate: (H,).
    """
    e, G, full, scale = cache
    dout = e.dtype.type(dout)  # a float64 scalar would make float64 of float32
    # error = eᵀ G e / full with a symmetric G
    de = dout * 2 * (G @ e) / full
    # e = scale * gate - 1
    return scale * de
