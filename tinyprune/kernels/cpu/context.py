"""Context: the memory and the segment one after the other. See `tinyprune.ops.context`.

    for b: out[b] = [m[b]; x[b]]

NumPy copies at the speed of memory already, a view too, as the model's memory is one. What is gained is memory that is
recycled: no page faults.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats
from tinyprune.ops.context import context_backward

__all__ = ["context_backward", "context_forward"]


def context_forward(m: NDArray | None, x: NDArray) -> tuple[NDArray, tuple]:
    """Put the memory before the segment. As `ops.context_forward`; float32 or float64."""
    if x.ndim != 3:
        raise ValueError(f"x must be (B, T, D), got {x.shape}")
    B, T, D = x.shape
    if m is None:
        check_floats(x=x)
        return x, (T,)
    if m.ndim != 3 or (m.shape[0], m.shape[2]) != (B, D):
        raise ValueError(f"m must be ({B}, M', {D}) to match x {x.shape}, got {m.shape}")
    check_floats(x=x, m=m)
    out = workspace.empty((B, m.shape[1] + T, D), x.dtype)
    return np.concatenate([m, x], axis=1, out=out), (T,)
