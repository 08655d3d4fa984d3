"""NumPy's matrix product, which is that of the BLAS library it was built with."""

from __future__ import annotations

from tinyprune.bench import ours
from tinyprune.bench.work import Work


def matmul(m: int, k: int, n: int, layout: str) -> Work:
    """One product; see `tinyprune.bench.inputs.matrices`."""
    return ours.matmul("numpy", m, k, n, layout)
