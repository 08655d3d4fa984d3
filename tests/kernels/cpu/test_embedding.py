"""Embedding compiled: rows looked up and summed, words dropped as in the textbook; threads, views, bad ids."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.embedding import embedding_backward, embedding_forward

from .compare import (
    LARGE,
    assert_close,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    leading,
    seeds,
    widths,
)


def there_and_back(forward, backward, ids, E, dout, rate, seed):
    out, cache = forward(ids, E, dropout=rate, rng=np.random.default_rng(seed))
    return out, backward(dout, cache)


def kernel(*arguments):
    return there_and_back(embedding_forward, embedding_backward, *arguments)


def textbook(*arguments):
    return there_and_back(ops.embedding_forward, ops.embedding_backward, *map(in_float64, arguments))


def inputs(dtype, R=300, V=70, D=13):
    E, dout = draw(1, dtype, (V, D), (R, D))
    ids = np.random.default_rng(1).integers(0, V, R) ** 2 // V  # small ids more often than large ones
    return ids, E, dout


@each_dtype
@few
@given(first=leading, V=st.sampled_from([1, 2, 7, 64, 131]), D=widths, rate=st.sampled_from([0.0, 0.4]), seed=seeds)
@example(first=LARGE, V=131, D=37, rate=0.3, seed=0)
def test_like_the_textbook(dtype, first, V, D, rate, seed):
    E, dout = draw(seed, dtype, (V, D), (*first, D))
    ids = np.random.default_rng(seed).integers(0, V, first)
    got, expected = kernel(np.asarray(ids), E, dout, rate, seed), textbook(np.asarray(ids), E, dout, rate, seed)
    assert_close(got, expected, dtype)
    assert_same_bits(got[0] == 0, expected[0] == 0)


def test_ids_of_any_integer_type():
    ids, E, dout = inputs(np.float64)
    expected = kernel(ids, E, dout, 0.2, 3)
    for dtype in (np.uint8, np.int16, np.int32, np.uint64):
        assert_same_bits(kernel(ids.astype(dtype), E, dout, 0.2, 3), expected)


def test_no_places_leave_no_gradient():
    out, dE = kernel(np.zeros((2, 0), int), np.ones((5, 3)), np.ones((2, 0, 3)), 0.2, 0)
    assert out.shape == (2, 0, 3)
    assert_same_bits(dE, np.zeros((5, 3)))


def test_evaluation_has_no_dropout():
    ids, E, _ = inputs(np.float64)
    assert_same_bits(embedding_forward(ids, E, dropout=0.9)[0], embedding_forward(ids, E)[0])


def test_the_same_draws_from_the_generator():
    ids, E, _ = inputs(np.float64)
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    for rate in (0.5, 0.0, 0.2):
        got, _ = embedding_forward(ids, E, dropout=rate, rng=ours)
        expected, _ = ops.embedding_forward(ids, E, dropout=rate, rng=theirs)
        assert_same_bits(got == 0, expected == 0)
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_threads_do_not_matter():
    arguments = inputs(np.float32, R=2000)
    assert_threads_do_not_matter(lambda: kernel(*arguments, 0.3, 5))


def test_each_word_is_summed_in_the_order_of_its_places():
    """In float32 the order shows: 2²⁴ swallows a 1 that comes after it."""
    E = np.ones((3, 1), np.float32)
    dout = np.array([2**24, 1, 1, -(2**24), 1], np.float32)[:, None]
    for order in (np.arange(5), np.array([1, 2, 0, 3, 4])):
        _, cache = embedding_forward(np.array([2, 2, 2, 2, 0])[order], E)
        total = np.float32(0)
        for value, word in zip(dout[order, 0], [2, 2, 2, 2, 0], strict=True):
            total += value if word == 2 else np.float32(0)
        assert embedding_backward(dout[order], cache)[2, 0] == total


def test_ids_may_be_filled_anew_before_backward():
    ids, E, dout = inputs(np.float64)
    _, expected = kernel(ids, E, dout, 0.2, 3)
    _, cache = embedding_forward(ids, E, dropout=0.2, rng=np.random.default_rng(3))
    ids[:] = 0
    assert_same_bits(embedding_backward(dout, cache), expected)


def test_views():
    ids, E, dout = inputs(np.float64)
    arguments = ids[::3], E[:, 4:], dout[::3, 4:]
    assert_close(kernel(*arguments, 0.2, 3), textbook(*arguments, 0.2, 3), np.float64)


def test_backward_twice_and_nothing_is_modified():
    ids, E, dout = arrays = inputs(np.float64)
    copies = tuple(a.copy() for a in arrays)
    _, cache = embedding_forward(ids, E, dropout=0.3, rng=np.random.default_rng(0))
    assert_same_bits(embedding_backward(dout, cache), embedding_backward(dout, cache))
    assert_same_bits(arrays, copies)


def test_nan_and_inf_are_not_hidden_by_being_dropped():
    ids = np.arange(40)
    E = np.array([np.nan, np.inf, -np.inf, 1.0] * 10)[:, None]
    with np.errstate(invalid="ignore"):
        expected = textbook(ids, E, E, 0.5, 2)
    np.testing.assert_array_equal(kernel(ids, E, E, 0.5, 2), expected)


@pytest.mark.parametrize("bad", [-1, 5])
def test_ids_out_of_range(bad):
    with pytest.raises(ValueError, match=r"ids must lie in 0 … 4, got .*" + str(bad)):
        embedding_forward(np.array([[0, bad]]), np.ones((5, 3)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="ids must be integers, got dtype float64"):
        embedding_forward(np.zeros(3), np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"E must be \(V, D\), got \(3,\)"):
        embedding_forward(np.zeros(3, int), np.ones(3))
    with pytest.raises(ValueError, match="E must be float32 or float64"):
        embedding_forward(np.zeros(3, int), np.ones((5, 3), int))
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        embedding_forward(np.zeros(3, int), np.ones((5, 3)), dropout=1)
    _, cache = embedding_forward(np.zeros(3, int), np.ones((5, 2)))
    for bad in (np.ones((2, 3)), np.ones((3, 2), np.float32)):
        with pytest.raises(ValueError, match=r"dout must be float64 \(3, 2\) like the output"):
            embedding_backward(bad, cache)
