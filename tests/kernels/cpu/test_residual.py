"""Residual connection compiled: the textbook's sums and masks; threads, views, NaN, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.residual import residual_backward, residual_forward

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


def there_and_back(forward, backward, x, y, dout, rate, seed):
    out, cache = forward(x, y, rate, np.random.default_rng(seed))
    return out, *backward(dout, cache)


def kernel(*arguments):
    return there_and_back(residual_forward, residual_backward, *arguments)


def textbook(*arguments):
    return there_and_back(ops.residual_forward, ops.residual_backward, *map(in_float64, arguments))


@each_dtype
@few
@given(first=leading, D=widths, rate=st.sampled_from([0.0, 0.1, 0.5, 0.99]), seed=seeds)
@example(first=LARGE, D=37, rate=0.3, seed=0)
def test_like_the_textbook(dtype, first, D, rate, seed):
    arrays = draw(seed, dtype, *[(*first, D)] * 3)
    got, expected = kernel(*arrays, rate, seed), textbook(*arrays, rate, seed)
    assert_close(got, expected, dtype)
    assert_same_bits(got[2] == 0, expected[2] == 0)


def test_evaluation_adds_and_hands_the_gradient_on():
    x, y, dout = draw(1, np.float64, *[(3, 4)] * 3)
    out, cache = residual_forward(x, y, 0.5, None)
    assert_same_bits(out, x + y)
    assert all(g is dout for g in residual_backward(dout, cache))


def test_the_same_draws_from_the_generator():
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    x = np.ones((7, 9))
    for rate in (0.5, 0.0, 0.2):
        assert_same_bits(residual_forward(x, x, rate, ours)[0], ops.residual_forward(x, x, rate, theirs)[0])
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_threads_do_not_matter():
    arrays = draw(0, np.float32, *[(*LARGE, 37)] * 3)
    for rate in (0.0, 0.3):
        assert_threads_do_not_matter(lambda rate=rate: kernel(*arrays, rate, 5))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_views_backward_twice_and_nothing_is_modified(rate):
    x, y, dout = draw(0, np.float64, (6, 10), (10, 6), (6, 20))
    arrays = x[:, 3:], y.T[:, 3:], dout[:, 6::2]
    copies = x.copy(), y.copy(), dout.copy()
    assert_close(kernel(*arrays, rate, 5), textbook(*arrays, rate, 5), np.float64)
    _, cache = residual_forward(*arrays[:2], rate, np.random.default_rng(5))
    assert_same_bits(residual_backward(arrays[2], cache), residual_backward(arrays[2], cache))
    assert_same_bits((x, y, dout), copies)


def test_nan_and_inf_are_not_hidden_by_being_dropped():
    y = np.array([np.nan, np.inf, -np.inf, 1.0] * 10)
    x = np.roll(y, 1)
    with np.errstate(invalid="ignore"):
        expected, _ = ops.residual_forward(x, y, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(residual_forward(x, y, 0.5, np.random.default_rng(2))[0], expected)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_bad_arguments(rate):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"y must have the shape of x, \(3,\), got \(1,\)"):
        residual_forward(np.ones(3), np.ones(1), rate, rng)
    with pytest.raises(ValueError, match="y must have the dtype of x, float64, got float32"):
        residual_forward(np.ones(3), np.ones(3, np.float32), rate, rng)
    with pytest.raises(ValueError, match="x must be float32 or float64"):
        residual_forward(np.ones(3, np.float16), np.ones(3, np.float16), rate, rng)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got 1\.5"):
        residual_forward(np.ones(3), np.ones(3), rate + 1.2 if rate else 1.5, rng)
    _, cache = residual_forward(np.ones(3), np.ones(3), 0.3, rng)
    with pytest.raises(ValueError, match=r"dout must be float64 \(3,\) like the output, got float64 \(4,\)"):
        residual_backward(np.ones(4), cache)
