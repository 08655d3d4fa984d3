"""Dropout compiled: the textbook's masks, bit for bit; threads, views, NaN, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.dropout import dropout_backward, dropout_forward, kept, threshold
from tinyprune.ops.dropout import keep_mask

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


def there_and_back(forward, backward, x, dout, rate, seed):
    out, cache = forward(x, rate, np.random.default_rng(seed))
    return out, backward(dout, cache)


@each_dtype
@few
@given(first=leading, D=widths, rate=st.sampled_from([0.0, 0.1, 0.5, 0.99]), seed=seeds)
@example(first=LARGE, D=37, rate=0.3, seed=0)
def test_like_the_textbook(dtype, first, D, rate, seed):
    x, dout = draw(seed, dtype, (*first, D), (*first, D))
    got = there_and_back(dropout_forward, dropout_backward, x, dout, rate, seed)
    expected = there_and_back(ops.dropout_forward, ops.dropout_backward, in_float64(x), in_float64(dout), rate, seed)
    assert_close(got, expected, dtype)
    assert_same_bits(got[0] == 0, expected[0] == 0)
    assert_same_bits(got[1] == 0, expected[1] == 0)


@few
@given(keys=st.tuples(seeds, seeds), rate=st.floats(0, 0.999), start=seeds)
def test_the_hash_of_one_entry(keys, rate, start):
    mask = keep_mask((50,), rate, keys)
    limits = np.uint32(keys[0]), np.uint32(keys[1]), np.uint32(threshold(rate))
    assert [kept(i, *limits) for i in range(50)] == mask.tolist()
    # entries are numbered modulo 2³²
    assert kept(start, *limits) == kept(start + 2**32, *limits)


def test_the_same_draws_from_the_generator():
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    x = np.ones((7, 9))
    for rate in (0.5, 0.0, 0.2):
        assert_same_bits(dropout_forward(x, rate, ours)[0] == 0, ops.dropout_forward(x, rate, theirs)[0] == 0)
    assert ours.bit_generator.state == theirs.bit_generator.state


@pytest.mark.parametrize(("rate", "rng"), [(0.5, None), (0.0, np.random.default_rng(0))])
def test_evaluation_and_rate_0_are_the_identity(rate, rng):
    x = np.ones((3, 4))
    out, cache = dropout_forward(x, rate, rng)
    assert out is x and dropout_backward(x, cache) is x


def test_threads_do_not_matter():
    x, dout = draw(0, np.float32, (*LARGE, 37), (*LARGE, 37))
    assert_threads_do_not_matter(lambda: there_and_back(dropout_forward, dropout_backward, x, dout, 0.3, 5))


def test_views_are_numbered_like_arrays_without_gaps():
    x, dout = draw(0, np.float64, (6, 10), (10, 6))
    x, dout = x[::2, 3:], dout.T[::2, 3:]
    got = there_and_back(dropout_forward, dropout_backward, x, dout, 0.3, 5)
    assert_close(got, there_and_back(ops.dropout_forward, ops.dropout_backward, x, dout, 0.3, 5), np.float64)


def test_backward_twice_and_nothing_is_modified():
    x, dout = draw(0, np.float64, (40, 3), (40, 3))
    copies = x.copy(), dout.copy()
    _, cache = dropout_forward(x, 0.4, np.random.default_rng(2))
    assert_same_bits(dropout_backward(dout, cache), dropout_backward(dout, cache))
    assert_same_bits((x, dout), copies)


def test_nan_and_inf_are_not_hidden_by_being_dropped():
    x = np.array([np.nan, np.inf, -np.inf, 1.0] * 10)
    out, _ = dropout_forward(x, 0.5, np.random.default_rng(2))
    with np.errstate(invalid="ignore"):
        expected, _ = ops.dropout_forward(x, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(out, expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"rate must be at least 0 and below 1, got 1"):
        dropout_forward(np.ones(3), 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="x must be float32 or float64 for a compiled kernel, got int64"):
        dropout_forward(np.ones(3, int), 0.5, np.random.default_rng(0))
    _, cache = dropout_forward(np.ones(3), 0.5, np.random.default_rng(0))
    for bad in (np.ones(4), np.ones(3, np.float32)):
        with pytest.raises(ValueError, match=r"dout must be float64 \(3,\) like the output"):
            dropout_backward(bad, cache)
