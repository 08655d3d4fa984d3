"""Adaptive softmax: predict a frequent word, or the cluster of a rare one and then the word in it.
(Grave et al. 2017, §4; tied to the adaptive embedding as in Baevski & Auli 2019, §3)

    head      = softmax over [x · tables[0]ᵀ + biases[0],  x · cluster_weightᵀ + cluster_bias]     V_0 words, C clusters
    tail_c    = softmax over (x · projections[c − 1]ᵀ) · tables[c]ᵀ + biases[c]                        V_c words
    log p(v)  = log head_v                                    for a word of cluster 0
              = log head_(V_0 + c − 1) + log tail_c,(v − first_c)     for a word of cluster c ≥ 1
    loss      = mean_r −log p(targets_r)

A tail is computed only for the rows whose target lies in it: that is where the time is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.adaptive_embedding import check_projections, cluster_bounds
from tinyprune.ops.cross_entropy import check_targets
from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def adaptive_softmax_forward(
    ops: Engine,
    x: NDArray,
    targets: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
) -> tuple[np.inexact, tuple]:
    """Compute the mean negative log-probability of `targets`.

    Args:
        ops: computes the parts; `ops.adaptive_softmax_forward` passes itself.
        x: last hidden states, (..., D), any float or complex dtype.
        targets: token numbers, integers in 0 … V−1, shape (...), at least one, in main memory.
        tables, projections: of the adaptive embedding, (V_c, D_c) for c = 0 … C and (D_c, D) for c = 1 … C.
        cluster_weight: (C, D).   cluster_bias: (C,): the logits of the C clusters of rarer words.
        biases: of the words, (V_c,) for c = 0 … C.

    Returns:
        loss: scalar in nats a token, dtype of `x`.
        cache: what `adaptive_softmax_backward` needs.

    Raises:
        ValueError: if a target is not an integer in 0 … V−1, or the shapes do not fit together.
    """
    bounds, C = cluster_bounds(tables), len(tables) - 1
    check_targets(x, targets, bounds[-1][1])
    check_projections(tables, projections)
    check_shapes(f"x: ... D, cluster_weight: {C} D, cluster_bias: {C}", x, cluster_weight, cluster_bias)
    if [len(bias) for bias in biases] != [len(table) for table in tables]:
        raise ValueError(f"biases must have one number for each row of tables, got {[bias.shape for bias in biases]}")
    rows, flat = x.reshape(targets.size, x.shape[-1]), targets.reshape(-1)

    V0 = len(tables[0])
    head_targets = flat.copy()
    for c, (first, end) in enumerate(bounds[1:]):
        head_targets[(flat >= first) & (flat < end)] = V0 + c
    weight, bias = head_parameters(ops, tables, cluster_weight, cluster_bias, biases)
    head_logits, head_linear = ops.linear_forward(rows, weight.T, bias)
    head_loss, head = ops.cross_entropy_forward(head_logits, head_targets, overwrite=True)

    losses, shares = [head_loss.reshape(1)], [1.0]
    tails: list[Any] = []
    for c, (first, end) in enumerate(bounds[1:], start=1):
        place = np.flatnonzero((flat >= first) & (flat < end))
        if not place.size:
            tails.append(None)
            continue
        narrow, narrow_linear = ops.linear_forward(ops.take_rows(rows, place), projections[c - 1].T)
        logits, word_linear = ops.linear_forward(narrow, tables[c].T, biases[c])
        tail_loss, tail = ops.cross_entropy_forward(logits, flat[place] - first, overwrite=True)
        losses.append(tail_loss.reshape(1))
        shares.append(place.size / flat.size)
        tails.append((place, narrow_linear, word_linear, tail))
    weights = ops.to_device(np.array([shares], np.empty(0, x.dtype).real.dtype))
    loss = ops.row_dots(ops.concatenate(losses).reshape(1, -1), weights)[0]
    return loss, (x.shape, flat.size, tables, projections, biases, head_linear, head, tails)


def adaptive_softmax_backward(ops: Engine, dout: float | np.inexact, cache: tuple) -> tuple:
    """Return the gradients of `adaptive_softmax_forward` in argument order, without `targets`.

    Args:
        dout: gradient with respect to `loss`, scalar.

    Returns:
        dx: (..., D).   dtables: (V_c, D_c) each.   dprojections: (D_c, D) each.
        dcluster_weight: (C, D).   dcluster_bias: (C,).   dbiases: (V_c,) each.
    """
    shape, R, tables, projections, biases, head_linear, head, tails = cache
    V0 = len(tables[0])
    # head_logits = x [tables[0]; cluster_weight]ᵀ + [biases[0]; cluster_bias]
    dx, dweight, dbias = ops.linear_backward(ops.cross_entropy_backward(dout, head), head_linear)
    dtables, dbiases = [dweight[:, :V0].T], [dbias[:V0]]
    dprojections = []
    for c, tail in enumerate(tails, start=1):
        if tail is None:
            dtables.append(zeros_like(ops, tables[c]))
            dprojections.append(zeros_like(ops, projections[c - 1]))
            dbiases.append(zeros_like(ops, biases[c]))
            continue
        place, narrow_linear, word_linear, cross_entropy = tail
        # loss = head_loss + Σ_c tail_loss_c · place_c.size / R
        dlogits = ops.cross_entropy_backward(dout * (place.size / R), cross_entropy)
        # logits = narrow tables[c]ᵀ + biases[c]
        dnarrow, dtable, dtail_bias = ops.linear_backward(dlogits, word_linear)
        # narrow = x[place] projections[c - 1]ᵀ
        drows, dprojection, _ = ops.linear_backward(dnarrow, narrow_linear)
        ops.add_rows(dx, place, drows)
        dtables.append(dtable.T)
        dprojections.append(dprojection.T)
        dbiases.append(dtail_bias)
    return dx.reshape(shape), dtables, dprojections, dweight[:, V0:].T, dbias[V0:], dbiases


def adaptive_log_probabilities(
    ops: Engine,
    x: NDArray,
    tables: list[NDArray],
    projections: list[NDArray],
    cluster_weight: NDArray,
    cluster_bias: NDArray,
    biases: list[NDArray],
) -> NDArray:
    """Compute log p of every word for generating text, (..., V), in main memory whatever the engine.

    Arguments are those of `adaptive_softmax_forward`.
    """
    V0 = len(tables[0])
    weight, bias = head_parameters(ops, tables, cluster_weight, cluster_bias, biases)
    head = ops.to_host(ops.log_softmax(ops.linear_forward(x, weight.T, bias)[0]))
    log_p = [head[..., :V0]]
    for c in range(1, len(tables)):
        narrow, _ = ops.linear_forward(x, projections[c - 1].T)
        logits, _ = ops.linear_forward(narrow, tables[c].T, biases[c])
        log_p.append(head[..., V0 + c - 1, None] + ops.to_host(ops.log_softmax(logits)))
    return np.concatenate(log_p, -1)


def head_parameters(
    ops: Engine, tables: list[NDArray], cluster_weight: NDArray, cluster_bias: NDArray, biases: list[NDArray]
) -> tuple[NDArray, NDArray]:
    """Return [tables[0]; cluster_weight], (V_0 + C, D), and [biases[0]; cluster_bias], (V_0 + C,)."""
    return ops.concatenate([tables[0], cluster_weight]), ops.concatenate([biases[0], cluster_bias])


def zeros_like(ops: Engine, x: NDArray) -> Any:
    """Return the gradient of a parameter that was not used."""
    return ops.to_device(np.zeros(x.shape, x.dtype))
