"""Gradient clipping: the joint norm of all gradients, and the factor that limits it. (Pascanu et al. 2013, Alg. 1)

    norm   = sqrt(Σ over all entries of all gradients g²)
    factor = max_norm / norm   where norm > max_norm, otherwise 1

The optimizers multiply by the factor as they read the gradients. Where the norm or a loss is NaN or infinite the factor
is NaN, with which they change nothing. So these numbers can be looked at after the update: on a GPU it need not wait
until Python has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def clip_factor(norm: float, max_norm: float) -> float:
    """Return the factor that limits the joint norm of all gradients to `max_norm`; 0 for that means no limit.

    >>> clip_factor(5.0, max_norm=2.0)
    0.4
    """
    if not math.isfinite(norm):
        return math.nan
    return max_norm / norm if max_norm and norm > max_norm else 1.0


def clipping(
    ops: Engine, grads: Sequence[NDArray], losses: Sequence[float | np.inexact], *, max_norm: float
) -> tuple[float, float]:
    """Compute the joint norm and the clipping factor.

    >>> from tinyprune import ops
    >>> ops.clipping([np.array([[3.0, 0.0]]), np.array([4.0])], [], max_norm=2.0)
    (5.0, 0.4)
    >>> ops.clipping([np.array([3.0])], [np.nan], max_norm=0.0)
    (3.0, nan)

    Args:
        ops: computes the squared norms; `ops.clipping` passes itself.
        grads: of any shapes, float32 or float64. Not modified.
        losses: further numbers that must be finite, or the factor is NaN.
        max_norm: the largest norm allowed; 0 for no limit.

    Returns:
        norm: summed in float64.
        factor: for `grad_scale` of the optimizers' updates. (On a GPU both stay in its memory.)
    """
    norm = math.hypot(*map(math.sqrt, ops.squared_norms(grads)))
    return norm, clip_factor(norm, max_norm) if all(map(math.isfinite, losses)) else math.nan
