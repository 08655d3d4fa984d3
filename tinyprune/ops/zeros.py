"""Zeros: gradients of which only a part is going to be filled in."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """A new array of zeros. A backend may have better places for arrays than NumPy.

    Args:
        shape: of the array.
        dtype: any float or complex dtype.
    """
    return np.zeros(shape, dtype)
