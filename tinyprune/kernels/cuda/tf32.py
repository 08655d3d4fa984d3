"""The backend "cuda-tf32": as "cuda", but the products of linear layers are made by tensor cores, in tf32.

Linear layers, projections, feed-forward blocks and the adaptive operations. Attention, and everything else, computes
in float32. How far off that is: see `tensor_cores`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tinyprune.kernels import cuda

PRECISION = "tf32"

linear_forward = partial(cuda.linear_forward, precision=PRECISION)
projections_forward = partial(cuda.projections_forward, precision=PRECISION)
feedforward_forward = partial(cuda.feedforward_forward, precision=PRECISION)
adaptive_embedding_forward = partial(cuda.adaptive_embedding_forward, precision=PRECISION)
adaptive_softmax_forward = partial(cuda.adaptive_softmax_forward, precision=PRECISION)
adaptive_log_probabilities = partial(cuda.adaptive_log_probabilities, precision=PRECISION)


def __getattr__(name: str) -> Any:
    """What is not here is that of "cuda"; backward finds the precision in its cache."""
    return getattr(cuda, name)
