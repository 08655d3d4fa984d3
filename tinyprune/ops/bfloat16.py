"""bfloat16: the first 16 bits of a float32, that is 8 bits of exponent as before and 8 significant bits instead of 24.

    out = x rounded to the nearest number with 8 significant bits, of two that are as near to the even one

A product whose factors are rounded so, with sums in float32, takes processors that have instructions for it a half to a
tenth of the time. (Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bfloat16_forward(x: NDArray) -> tuple[NDArray, None]:
    """Round to bfloat16.

    Args:
        x: any shape, float32.

    Returns:
        out: the same shape, float32 numbers whose last 16 bits are 0. NaN stays NaN, and what is nearer to 2¹²⁸ than to
            the largest number becomes infinite.
        cache: None.

    Raises:
        ValueError: for another dtype.
    """
    if x.dtype != np.float32:
        raise ValueError(f"x must be float32, got {x.dtype}")
    bits = np.ascontiguousarray(x).view(np.uint32)
    # Half of the last bit that stays, or a little less where that bit is even: the sum carries over to round up.
    half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    out = (bits + half & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), out).reshape(x.shape), None


def bfloat16_backward(dout: NDArray, cache: None) -> NDArray:
    """Return dx = dout: the steps have gradient 0 nearly everywhere, so that the line x stands for them.

    That is the straight-through estimator. (Bengio, Léonard & Courville 2013, arXiv 1308.3432)
    """
    # out ≈ x
    return dout
