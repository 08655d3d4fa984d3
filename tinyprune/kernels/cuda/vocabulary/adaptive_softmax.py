"""Adaptive softmax: predict a frequent word, or the cluster of a rare one and then the word in it. See
`tinyprune.ops.adaptive_softmax`.

    loss = cross-entropy of the head over all rows + Σ_c share of its rows · cross-entropy of tail c over them

Products and losses are those of `linear` and `cross_entropy`. The rows of each tail are found in main memory, where the
targets are.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.layers.context import context_forward
from tinyprune.kernels.cuda.layers.linear import linear_backward, linear_forward
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous, zeros
from tinyprune.kernels.cuda.pruning.join import join
from tinyprune.kernels.cuda.vocabulary.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.kernels.cuda.vocabulary.rows import add_rows, taken_rows
from tinyprune.ops.adaptive_embedding import cluster_bounds
from tinyprune.ops.adaptive_softmax import check_arguments

THREADS = 256


@kernel(floats, floats, float32, floats, threads=1)
def add_share(total, part, share, out):
    """out[0] = total[0] + part[0] · share."""
    out[0] = total[0] + part[0] * share


@kernel(floats, int32, floats, int32, int32, int32, int32, int32, floats, threads=THREADS)
def spread(log_p, n, head, width, column, first, V, size, out):
    """out (R, V) from column `first` on: log_p (R, n), plus column `column` of head (R, width) unless that is −1."""
    i = cuda.grid(1)
    if i < size:
        row, j = i // n, i % n
        value = log_p[i]
        if column >= 0:
            value += head[row * width + column]
        out[row * V + first + j] = value


def head_parameters(
    table: DeviceArray, cluster_weight: DeviceArray, bias: DeviceArray, cluster_bias: DeviceArray
) -> tuple[DeviceArray, DeviceArray]:
    """Return the head's [table; cluster_weight], (V_0 + C, D), and [bias; cluster_bias], (V_0 + C,)."""
    (V0, D), C = table.shape, len(cluster_weight)
    weight, _ = context_forward(contiguous(table).reshape(1, V0, D), contiguous(cluster_weight).reshape(1, C, D))
    return weight.reshape(V0 + C, D), join([bias, cluster_bias])


def adaptive_softmax_forward(
    x: DeviceArray,
    targets: NDArray,
    tables: list[DeviceArray],
    projections: list[DeviceArray],
    cluster_weight: DeviceArray,
    cluster_bias: DeviceArray,
    biases: list[DeviceArray],
    *,
    precision: str = "float32",
) -> tuple[DeviceArray, tuple]:
    """Mean negative log-probability of `targets`, integers in main memory: `ops.adaptive_softmax_forward` for float32.

    The loss has shape (). For `precision` see `linear`.
    """
    check_floats(x=x, tables=tables, projections=projections, biases=biases)
    check_floats(cluster_weight=cluster_weight, cluster_bias=cluster_bias)
    check_arguments(x, targets, tables, projections, cluster_weight, cluster_bias, biases)
    bounds = cluster_bounds(tables)
    D, V0 = x.shape[-1], len(tables[0])
    rows, flat = contiguous(x).reshape(-1, D), targets.reshape(-1)

    head_targets = flat.copy()
    for c, (first, end) in enumerate(bounds[1:]):
        head_targets[(flat >= first) & (flat < end)] = V0 + c
    weight, bias = head_parameters(tables[0], cluster_weight, biases[0], cluster_bias)
    head_logits, head_linear = linear_forward(rows, weight.T, bias, precision=precision)
    loss, head_loss = cross_entropy_forward(head_logits, head_targets, overwrite=True)

    tails = []
    for c, (first, end) in enumerate(bounds[1:], start=1):
        place = np.flatnonzero((flat >= first) & (flat < end))
        if not place.size:
            tails.append(None)
            continue
        narrow, narrow_linear = linear_forward(taken_rows(rows, place), projections[c - 1].T, precision=precision)
        logits, word_linear = linear_forward(narrow, tables[c].T, biases[c], precision=precision)
        tail_loss, tail_cache = cross_entropy_forward(logits, flat[place] - first, overwrite=True)
        before, loss = loss, empty(())
        add_share(1, before, tail_loss, np.float32(place.size / flat.size), loss)
        tails.append((place, narrow_linear, word_linear, tail_cache))
    return loss, (x.shape, flat.size, tables, projections, biases, head_linear, head_loss, tails)


def adaptive_softmax_backward(dout: float | DeviceArray, cache: tuple) -> tuple:
    """Gradients of `adaptive_softmax_forward` in argument order, as `ops.adaptive_softmax_backward`.

    Waits for a `dout` in the GPU's memory.
    """
    shape, R, tables, projections, biases, head_linear, head_loss, tails = cache
    dout, V0 = float(dout), len(tables[0])
    # head_logits = x [tables[0]; cluster_weight]ᵀ + [biases[0]; cluster_bias]
    dx, dweight, dbias = linear_backward(cross_entropy_backward(dout, head_loss), head_linear)
    dtables, dcluster_weight = [contiguous(dweight[:, :V0].T)], contiguous(dweight[:, V0:].T)
    dbiases, dcluster_bias = [dbias[:V0]], dbias[V0:]
    dprojections = []
    for c, tail in enumerate(tails, start=1):
        if tail is None:
            dtables.append(zeros(tables[c].shape))
            dprojections.append(zeros(projections[c - 1].shape))
            dbiases.append(zeros(biases[c].shape))
            continue
        place, narrow_linear, word_linear, tail_cache = tail
        # loss += tail_loss * (place.size / R)
        dlogits = cross_entropy_backward(dout * (place.size / R), tail_cache)
        # logits = narrow tables[c]ᵀ + biases[c]
        dnarrow, dtable, dtail_bias = linear_backward(dlogits, word_linear)
        # narrow = x[place] projections[c − 1]ᵀ
        drows, dprojection, _ = linear_backward(dnarrow, narrow_linear)
        add_rows(drows, place, dx)
        dtables.append(contiguous(dtable.T))
        dprojections.append(contiguous(dprojection.T))
        dbiases.append(dtail_bias)
    return dx.reshape(shape), dtables, dprojections, dcluster_weight, dcluster_bias, dbiases


def adaptive_log_probabilities(
    x: DeviceArray,
    tables: list[DeviceArray],
    projections: list[DeviceArray],
    cluster_weight: DeviceArray,
    cluster_bias: DeviceArray,
    biases: list[DeviceArray],
    *,
    precision: str = "float32",
) -> DeviceArray:
    """log p of every word, (..., V): `ops.adaptive_log_probabilities` for float32."""
    bounds = cluster_bounds(tables)
    V, V0, D = bounds[-1][1], len(tables[0]), x.shape[-1]
    rows = contiguous(x).reshape(-1, D)
    weight, bias = head_parameters(tables[0], cluster_weight, biases[0], cluster_bias)
    head = log_softmax(linear_forward(rows, weight.T, bias, precision=precision)[0])
    out = empty((len(rows), V))
    parts = [(contiguous(head[:, :V0]), -1)]
    for c in range(1, len(tables)):
        narrow, _ = linear_forward(rows, projections[c - 1].T, precision=precision)
        logits, _ = linear_forward(narrow, tables[c].T, biases[c], precision=precision)
        parts.append((log_softmax(logits), V0 + c - 1))
    for (first, _), (log_p, column) in zip(bounds, parts, strict=True):
        n = log_p.shape[1]
        spread(blocks(log_p.size, THREADS), log_p, n, head, head.shape[1], column, first, V, log_p.size, out)
    return out.reshape(*x.shape[:-1], V)
