"""How every kernel here is compiled.

`cache=True`: compiled once on a machine, then read from disk. `error_model="numpy"`: x / 0 is inf, as in NumPy, without
a test at each division. Rounding is left as written (no fastmath), so that a sum's order is the one the code shows.

With NUMBA_BOUNDSCHECK=1 every index is checked, those of the vector loads and stores in `simd` too; kernels then run in
one thread, since Numba cannot raise from inside a parallel loop.
"""

from __future__ import annotations

import numba
from numba.core import config

BOUNDS_CHECKED = bool(config.BOUNDSCHECK)

kernel = numba.njit(cache=True, error_model="numpy")
parallel_kernel = numba.njit(cache=True, error_model="numpy", parallel=not BOUNDS_CHECKED)


def threads() -> int:
    """How many threads a parallel kernel may use now; no result depends on it."""
    return numba.get_num_threads()
