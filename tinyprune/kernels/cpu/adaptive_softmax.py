"""Adaptive softmax: the textbook's, made of compiled parts. See `tinyprune.ops.adaptive_softmax`.

Kernels compute the products and cross-entropies. NumPy finds which row belongs to which cluster and copies rows there
and back. The cache carries the compiled parts, so that the textbook's backward needs no wrapper.

Times (ms, 2 threads), x (16, 128, 256), clusters of 2,000, 8,000 and 10,000 words in 256, 64 and 16 numbers, float32:
forward 15, NumPy 21; backward 24, NumPy 25: nearly all of it is products.
"""

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from tinyprune import ops
from tinyprune.kernels.cpu.adaptive_embedding import numbered
from tinyprune.kernels.cpu.arguments import check_floats
from tinyprune.kernels.cpu.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.kernels.cpu.linear import linear_backward, linear_forward
from tinyprune.ops.adaptive_softmax import adaptive_softmax_backward

__all__ = ["adaptive_log_probabilities", "adaptive_softmax_backward", "adaptive_softmax_forward"]

COMPILED = SimpleNamespace(
    linear_forward=linear_forward,
    linear_backward=linear_backward,
    cross_entropy_forward=cross_entropy_forward,
    cross_entropy_backward=cross_entropy_backward,
    log_softmax=log_softmax,
)


def adaptive_softmax_forward(
    x: NDArray,
    targets: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
) -> tuple[np.inexact, tuple]:
    """Compute the mean negative log-probability of `targets`, as `ops.adaptive_softmax_forward`; float32 or float64."""
    weights = (tables, projections, cluster_weight, cluster_bias, biases)
    check_one_dtype(x, *weights)
    return ops.adaptive_softmax_forward(x, targets, *weights, parts=COMPILED)


def adaptive_log_probabilities(
    x: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
) -> NDArray:
    """Compute log p of every word, (..., V), as `ops.adaptive_log_probabilities`; float32 or float64."""
    weights = (tables, projections, cluster_weight, cluster_bias, biases)
    check_one_dtype(x, *weights)
    return ops.adaptive_log_probabilities(x, *weights, parts=COMPILED)


def check_one_dtype(x, tables, projections, cluster_weight, cluster_bias, biases) -> None:
    """Raise ValueError unless all are float32, or all float64; concatenating arrays would hide a mixture."""
    lists = numbered(tables=tables, projections=projections, biases=biases)
    check_floats(x=x, cluster_weight=cluster_weight, cluster_bias=cluster_bias, **lists)
