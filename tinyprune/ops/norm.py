"""Squared norm: the sum of the squares of all entries.

‖x‖² = Σ x_i²
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def squared_norm(x: NDArray) -> float:
    """Compute ‖x‖² over all entries, squared and summed in float64.

    >>> squared_norm(np.array([[1, -2], [3, 4]], np.float32))
    30.0

    Args:
        x: any shape, float32 or float64.

    Returns:
        a Python float: NaN or inf if `x` has such entries, inf if a square or the sum overflows, 0 for no entries.
    """
    with np.errstate(over="ignore"):
        squares = np.square(x, dtype=np.float64)
        # ravel: summed in the order of the indices, so that the last bit does not depend on how memory is laid out.
        return float(squares.ravel().sum())


def squared_norms(arrays: Sequence[NDArray]) -> list[float]:
    """Compute `squared_norm` of each array. On a GPU, Python then waits once for all of them."""
    return [squared_norm(x) for x in arrays]
