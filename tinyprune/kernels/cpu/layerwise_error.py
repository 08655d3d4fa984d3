"""Layer-wise error: a loss for a layer's gates. See `tinyprune.ops.layerwise_error`.

    for b, t: oo += o[b, t] ⊗ o[b, t]                 error = eᵀ G e / full,  G = oo ∘ (Wo Woᵀ), summed by heads

`matmul` computes the two large products; the rest is (H, H) numbers, for which the textbook is quick enough.

Times (µs, 2 threads), o (16, 128, 8, 16) and Wo (128, 128) in float32: 260, NumPy 320.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, contiguous
from tinyprune.kernels.cpu.linear import column_sums
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.ops.layerwise_error import check_arguments, error_of, layerwise_error_backward

__all__ = ["layerwise_error_backward", "layerwise_error_forward"]


def layerwise_error_forward(
    gate: NDArray, o: NDArray, Wo: NDArray, bo: NDArray, scale: float = 1.0
) -> tuple[np.inexact, tuple]:
    """Compute the relative squared error of gating, as `ops.layerwise_error_forward`; float32 or float64."""
    check_arguments(gate, o, Wo, bo)
    check_floats(gate=gate, o=o, Wo=Wo, bo=bo)
    B, T, H, Dh = o.shape
    rows = contiguous(o).reshape(B * T, H * Dh)
    outputs = matmul(column_sums(rows)[None], Wo)[0]
    return error_of(
        gate, scale, matmul(rows, rows, transpose_a=True), matmul(Wo, Wo, transpose_b=True), outputs, bo, B * T
    )
