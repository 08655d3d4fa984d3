"""Many arrays in one launch: a table of where they are.

    @kernel(tables, …)
    def each(arrays, …):
        x = arrays[n]                a pointer to the first entry of array n

To launch a kernel takes Python longer than a GPU takes for a small array, and a model has hundreds of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from tinyprune.kernels.cuda.array import DeviceArray
from tinyprune.kernels.cuda.jit import SIMULATED, floats
from tinyprune.kernels.cuda.memory import Lease

tables = types.CPointer(floats)


class Table:
    """Pointers to contiguous arrays, for a kernel that says `tables`. The arrays live as long as it does."""

    def __init__(self, arrays: Sequence[DeviceArray]) -> None:
        self.arrays = arrays
        self.pointers = [x.pointer for x in arrays]
        if not SIMULATED:
            self.lease = Lease(2 * len(arrays))
            self.lease.write(0, np.array(self.pointers, np.uint64).view(np.int32))

    @property
    def pointer(self) -> Any:
        """What a kernel takes for it."""
        return self.pointers if SIMULATED else self.lease.address
