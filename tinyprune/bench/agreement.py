"""Do two contenders compute the same?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def disagreement(a: dict[str, NDArray], b: dict[str, NDArray], tolerance: float) -> str:
    """What two contenders' results differ in, unless ‖x − y‖ ≤ tolerance · ‖y‖ for every pair of arrays."""
    if a.keys() != b.keys():
        return f"one has {', '.join(a)}, the other {', '.join(b)}"
    for name, x in a.items():
        y = b[name].astype(np.float64)
        if x.shape != y.shape:
            return f"{name} has shapes {x.shape} and {y.shape}"
        error, size = np.linalg.norm(x - y), np.linalg.norm(y)
        if not error <= tolerance * size:  # with NaN there is no agreement
            return f"{name} differs by {error / size:.1e} of its norm, allowed is {tolerance:.0e}"
    return ""
