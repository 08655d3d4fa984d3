"""Adaptive softmax: predict a frequent word, or the cluster of a rare one and then the word in it.
(Grave et al. 2017, §4; tied to the adaptive embedding as in Baevski & Auli 2019, §3)

    head      = softmax over [x · tables[0]ᵀ + biases[0],  x · cluster_weightᵀ + cluster_bias]     V_0 words, C clusters
    tail_c    = softmax over (x · projections[c − 1]ᵀ) · tables[c]ᵀ + biases[c]                        V_c words
    log p(v)  = log head_v                                    for a word of cluster 0
              = log head_(V_0 + c − 1) + log tail_c,(v − first_c)     for a word of cluster c ≥ 1
    loss      = mean_r −log p(targets_r)

A tail is computed only for the rows whose target lies in it: that is where the time is saved.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.adaptive_embedding import check_projections, cluster_bounds
from tinyprune.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.ops.embedding import check_ids
from tinyprune.ops.linear import linear_backward, linear_forward

# The operations that this one is made of; a compiled backend hands in its own.
TEXTBOOK = SimpleNamespace(
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
    *,
    parts: SimpleNamespace = TEXTBOOK,
) -> tuple[np.inexact, tuple]:
    """Compute the mean negative log-probability of `targets`.

    Args:
        x: last hidden states, (..., D), any float or complex dtype.
        targets: token numbers, integers in 0 … V−1, shape (...), at least one.
        tables, projections: of the adaptive embedding, (V_c, D_c) for c = 0 … C and (D_c, D) for c = 1 … C.
        cluster_weight: (C, D).   cluster_bias: (C,): the logits of the C clusters of rarer words.
        biases: of the words, (V_c,) for c = 0 … C.
        parts: the operations to compute with, forward and backward.

    Returns:
        loss: scalar in nats a token, dtype of `x`.
        cache: what `adaptive_softmax_backward` needs.

    Raises:
        ValueError: if a target is not an integer in 0 … V−1, or the shapes do not fit together.
    """
    check_arguments(x, targets, tables, projections, cluster_weight, cluster_bias, biases)
    bounds = cluster_bounds(tables)
    rows, flat = x.reshape(-1, x.shape[-1]), targets.reshape(-1)

    V0 = len(tables[0])
    head_targets = flat.copy()
    for c, (first, end) in enumerate(bounds[1:]):
        head_targets[(flat >= first) & (flat < end)] = V0 + c
    weight = np.concatenate([tables[0], cluster_weight])
    head_logits, head_linear = parts.linear_forward(rows, weight.T, np.concatenate([biases[0], cluster_bias]))
    loss, head_loss = parts.cross_entropy_forward(head_logits, head_targets)

    tails: list[Any] = []
    for c, (first, end) in enumerate(bounds[1:], start=1):
        place = np.flatnonzero((flat >= first) & (flat < end))
        if not place.size:
            tails.append(None)
            continue
        narrow, narrow_linear = parts.linear_forward(rows[place], projections[c - 1].T)
        logits, word_linear = parts.linear_forward(narrow, tables[c].T, biases[c])
        tail_loss, tail_cache = parts.cross_entropy_forward(logits, flat[place] - first)
        loss = loss + tail_loss * (place.size / flat.size)
        tails.append((place, narrow_linear, word_linear, tail_cache))
    return loss, (x.shape, flat.size, tables, projections, biases, head_linear, head_loss, tails, parts)


def adaptive_softmax_backward(dout: float | np.inexact, cache: tuple) -> tuple:
    """Return the gradients of `adaptive_softmax_forward` in argument order, without `targets`.

    Args:
        dout: gradient with respect to `loss`, scalar.

    Returns:
        dx: (..., D).   dtables: (V_c, D_c) each.   dprojections: (D_c, D) each.
        dcluster_weight: (C, D).   dcluster_bias: (C,).   dbiases: (V_c,) each.
    """
    shape, R, tables, projections, biases, head_linear, head_loss, tails, parts = cache
    V0 = len(tables[0])
    # head_logits = x [tables[0]; cluster_weight]ᵀ + [biases[0]; cluster_bias]
    dx, dweight, dbias = parts.linear_backward(parts.cross_entropy_backward(dout, head_loss), head_linear)
    dtables, dcluster_weight = [np.ascontiguousarray(dweight[:, :V0].T)], np.ascontiguousarray(dweight[:, V0:].T)
    dbiases, dcluster_bias = [dbias[:V0]], dbias[V0:]
    dprojections = []
    for c, tail in enumerate(tails, start=1):
        if tail is None:
            dtables.append(np.zeros_like(tables[c]))
            dprojections.append(np.zeros_like(projections[c - 1]))
            dbiases.append(np.zeros_like(biases[c]))
            continue
        place, narrow_linear, word_linear, tail_cache = tail
        # loss += tail_loss * (place.size / R)
        dlogits = parts.cross_entropy_backward(dout * (place.size / R), tail_cache)
        # logits = narrow tables[c]ᵀ + biases[c]
        dnarrow, dtable, dtail_bias = parts.linear_backward(dlogits, word_linear)
        # narrow = x[place] projections[c - 1]ᵀ
        drows, dprojection, _ = parts.linear_backward(dnarrow, narrow_linear)
        dx[place] += drows
        dtables.append(np.ascontiguousarray(dtable.T))
        dprojections.append(np.ascontiguousarray(dprojection.T))
        dbiases.append(dtail_bias)
    return dx.reshape(shape), dtables, dprojections, dcluster_weight, dcluster_bias, dbiases


def adaptive_log_probabilities(
    x: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
    *,
    parts: SimpleNamespace = TEXTBOOK,
) -> NDArray:
    """Compute log p of every word, (..., V), for generating text. Arguments as in `adaptive_softmax_forward`."""
    V0 = len(tables[0])
    weight = np.concatenate([tables[0], cluster_weight])
    head_logits, _ = parts.linear_forward(x, weight.T, np.concatenate([biases[0], cluster_bias]))
    head = parts.log_softmax(head_logits)
    log_p = [head[..., :V0]]
    for c in range(1, len(tables)):
        narrow, _ = parts.linear_forward(x, projections[c - 1].T)
        logits, _ = parts.linear_forward(narrow, tables[c].T, biases[c])
        log_p.append(head[..., V0 + c - 1, None] + parts.log_softmax(logits))
    return np.concatenate(log_p, -1)


def check_arguments(
    x: NDArray,
    targets: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    bounds = cluster_bounds(tables)
    if targets.shape != x.shape[:-1] or targets.size == 0:
        raise ValueError(f"targets must have shape {x.shape[:-1]}, one or more, got {targets.shape}")
    check_ids(targets, bounds[-1][1], "targets")
    check_projections(tables, projections)
    C, D = len(tables) - 1, x.shape[-1]
    if cluster_weight.shape != (C, D) or cluster_bias.shape != (C,):
        raise ValueError(
            f"cluster_weight and cluster_bias must have shapes {(C, D)} and {(C,)}, got {cluster_weight.shape} and "
            f"{cluster_bias.shape}"
        )
    if [len(bias) for bias in biases] != [len(table) for table in tables]:
        raise ValueError(f"biases must have one number for each row of tables, got {[bias.shape for bias in biases]}")
