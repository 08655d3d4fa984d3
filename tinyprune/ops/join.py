"""Join: vectors one after the other, such as the gates of all layers.

out = [a_0; a_1; …]            a_i (n_i,)   out (Σ n_i,)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def join(arrays: Sequence[NDArray]) -> NDArray:
    """Concatenate vectors into a new array.

    Args:
        arrays: at least one, each 1-D, any float or complex dtype; they may be views, with gaps in memory.

    Raises:
        ValueError: if there is none, or one is not 1-D.
    """
    check_vectors(arrays)
    return np.concatenate(arrays)


def check_vectors(arrays: Sequence[NDArray]) -> None:
    """Raise ValueError unless there is at least one array and all are 1-D."""
    if not arrays:
        raise ValueError("arrays must be at least one, got none")
    for i, x in enumerate(arrays):
        if x.ndim != 1:
            raise ValueError(f"arrays[{i}] must be 1-D, got {x.shape}")
