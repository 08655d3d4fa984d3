"""Adaptive softmax of compiled parts: against the textbook; ragged and absent clusters, threads, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.adaptive_softmax import (
    adaptive_log_probabilities,
    adaptive_softmax_backward,
    adaptive_softmax_forward,
)

from .compare import (
    LARGE,
    assert_close,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    seeds,
)

some = st.sampled_from([(), (1,), (5,), (2, 3), (1, 31), (97,)])
# (words, widths) of the clusters; the first width is the model's
clusterings = st.sampled_from(
    [
        ([9], [5]),
        ([1, 1], [1, 1]),
        ([4, 3, 5], [6, 3, 2]),
        ([2, 1, 61], [37, 13, 1]),
        ([64, 1, 7, 131], [33, 16, 8, 3]),
    ]
)


def inputs(dtype, first=(3, 20), words=(4, 3, 5), widths=(6, 3, 2), seed=0):
    """x, targets, tables, projections, cluster_weight, cluster_bias, biases."""
    C, D = len(words) - 1, widths[0]
    x, cluster_weight, cluster_bias = draw(seed, dtype, (*first, D), (C, D), (C,))
    tables = draw(seed + 1, dtype, *zip(words, widths, strict=True))
    projections = draw(seed + 2, dtype, *((width, D) for width in widths[1:]))
    biases = draw(seed + 3, dtype, *((n,) for n in words))
    targets = np.asarray(np.random.default_rng(seed).integers(0, sum(words), first))
    return x, targets, tables, projections, cluster_weight, cluster_bias, biases


def flattened(gradients):
    """Lists of arrays as tuples, for `compare`."""
    return tuple(tuple(g) if isinstance(g, list) else g for g in gradients)


def kernel(*arguments, dout=1.0):
    loss, cache = adaptive_softmax_forward(*arguments)
    return loss, flattened(adaptive_softmax_backward(dout, cache))


def wide(arguments):
    return [list(map(in_float64, a)) if isinstance(a, list) else in_float64(a) for a in arguments]


def textbook(*arguments, dout=1.0):
    loss, cache = ops.adaptive_softmax_forward(*wide(arguments))
    return loss, flattened(ops.adaptive_softmax_backward(dout, cache))


def log_probabilities(operations, x, _, *weights):
    return operations(x, *weights)


@each_dtype
@few
@given(first=some, clustering=clusterings, dout=st.sampled_from([1.0, -0.3]), seed=seeds)
@example(first=LARGE, clustering=([64, 1, 7, 131], [33, 16, 8, 3]), dout=1.0, seed=0)
def test_like_the_textbook(dtype, first, clustering, dout, seed):
    arguments = inputs(dtype, first, *clustering, seed)
    (loss, gradients), (expected, expected_gradients) = (f(*arguments, dout=dout) for f in (kernel, textbook))
    assert_close(loss, expected, dtype)
    # gradients of a mean are as small as there are rows many
    rows = arguments[1].size
    assert_close(times(dtype(rows), gradients), times(rows, expected_gradients), dtype)


def times(factor, arrays):
    return tuple(times(factor, a) if isinstance(a, tuple) else factor * a for a in arrays)


@each_dtype
@few
@given(first=st.one_of(some, st.sampled_from([(0,), (2, 0, 3)])), clustering=clusterings, seed=seeds)
@example(first=LARGE, clustering=([64, 1, 7, 131], [33, 16, 8, 3]), seed=0)
def test_log_probabilities(dtype, first, clustering, seed):
    arguments = inputs(dtype, first, *clustering, seed)
    got = log_probabilities(adaptive_log_probabilities, *arguments)
    assert_close(got, log_probabilities(ops.adaptive_log_probabilities, *wide(arguments)), dtype)


@pytest.mark.parametrize("word", [0, 5, 11])
def test_targets_of_one_cluster_only(word):
    x, _, *weights = inputs(np.float64, (7,))
    arguments = x, np.full(7, word), *weights
    assert_close(kernel(*arguments), textbook(*arguments), np.float64)


def test_targets_of_any_integer_type():
    x, targets, *weights = inputs(np.float64)
    expected = kernel(x, targets, *weights)
    for dtype in (np.uint8, np.int16, np.int32, np.uint64):
        assert_same_bits(kernel(x, targets.astype(dtype), *weights), expected)


@each_dtype
def test_threads_do_not_matter(dtype):
    arguments = inputs(dtype, (1500,), (300, 200, 411), (64, 32, 16))
    assert_threads_do_not_matter(
        lambda: (*kernel(*arguments), log_probabilities(adaptive_log_probabilities, *arguments))
    )


def test_views():
    x, targets, tables, projections, cluster_weight, cluster_bias, biases = inputs(
        np.float64, (6, 10), widths=(12, 6, 4)
    )
    arguments = (
        x[::2, :, 3:9],
        targets[::2],
        [tables[0][:, ::2], tables[1][:, 1:4], np.asfortranarray(tables[2])[:, 2:]],
        [projections[0][1:4, 6:], projections[1][:2, ::-2]],
        cluster_weight[:, 6:],
        cluster_bias[::-1],
        [bias[::-1] for bias in biases],
    )
    assert_close(kernel(*arguments), textbook(*arguments), np.float64)


@pytest.mark.parametrize("dout", [1.0, 0.5, np.float64(-2)])
def test_backward_twice_and_nothing_is_modified(dout):
    arguments = inputs(np.float64)
    arrays = [array for a in arguments for array in (a if isinstance(a, list) else [a])]
    copies = [array.copy() for array in arrays]
    _, cache = adaptive_softmax_forward(*arguments)
    first = flattened(adaptive_softmax_backward(dout, cache))
    adaptive_softmax_backward(3.0, cache)
    assert_same_bits(flattened(adaptive_softmax_backward(dout, cache)), first)
    assert_same_bits(tuple(arrays), tuple(copies))


NAMES = ["x", "targets", "tables", "projections", "cluster_weight", "cluster_bias", "biases"]


def changed(name, change):
    arguments = dict(zip(NAMES, inputs(np.float64), strict=True))
    return arguments | {name: change(arguments[name])}


def in_float32(value):
    return [a.astype(np.float32) for a in value] if isinstance(value, list) else value.astype(np.float32)


@pytest.mark.parametrize("name", ["tables", "projections", "cluster_weight", "cluster_bias", "biases"])
def test_mixed_dtypes_and_the_one_that_differs(name):
    arguments = changed(name, in_float32)
    message = rf"^{name}(\[0\])? must have the dtype of x, float64, got float32"
    with pytest.raises(ValueError, match=message):
        adaptive_softmax_forward(*arguments.values())
    with pytest.raises(ValueError, match=message):
        log_probabilities(adaptive_log_probabilities, *arguments.values())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x + 0j, "x must be float32 or float64 .* got complex128"),
        ("x", lambda x: x[..., :5], r"cluster_weight and cluster_bias must have shapes \(2, 5\) and \(2,\), got"),
        ("x", lambda x: x[:0], r"targets must have shape \(0, 20\), one or more, got \(3, 20\)"),
        ("targets", lambda t: t[:2], r"targets must have shape \(3, 20\), one or more, got \(2, 20\)"),
        ("targets", lambda t: t * 1.0, "targets must be integers, got dtype float64"),
        ("targets", lambda t: t - 1, r"targets must lie in 0 … 11, got -1 …"),
        ("targets", lambda t: t + 1, r"targets must lie in 0 … 11, got 1 … 12"),
        ("projections", lambda p: p[:1], "projections must be 2, one for each table but the first, got 1"),
        ("projections", lambda p: [p[0].T, p[1]], r"projections\[0\] must have shape \(3, 6\), got \(6, 3\)"),
        ("cluster_weight", lambda w: w.T, r"cluster_weight and cluster_bias must have shapes \(2, 6\) and \(2,\)"),
        ("biases", lambda b: b[::-1], "biases must have one number for each row of tables"),
    ],
)
def test_bad_arguments(name, change, message):
    with pytest.raises(ValueError, match=message):
        adaptive_softmax_forward(*changed(name, change).values())
