"""Feed-forward compiled: against the textbook over shapes; NaN, threads, nothing modified."""

import numpy as np
import pytest
from hypothesis import given

from tinyprune import ops
from tinyprune.kernels.cpu.feedforward import feedforward_backward, feedforward_forward

from .compare import (
    TOLERANCE,
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


def example(seed, dtype, first, D, F):
    return draw(seed, dtype, (*first, D), (D, F), (F,), (F, D), (D,), (*first, D))


def there_and_back(forward, backward, x, W1, b1, W2, b2, dout):
    out, cache = forward(x, W1, b1, W2, b2)
    return out, *backward(dout, cache)


def kernel(*arrays):
    return there_and_back(feedforward_forward, feedforward_backward, *arrays)


def textbook(*arrays):
    return there_and_back(ops.feedforward_forward, ops.feedforward_backward, *arrays)


@each_dtype
@few
@given(first=leading, D=widths, F=widths, seed=seeds)
def test_like_the_textbook(dtype, first, D, F, seed):
    x, W1, b1, W2, b2, dout = example(seed, dtype, first, D, F)
    # Small whole numbers, whose sums are exact: no entry lies so near to the kink that rounding decides its side.
    x, W1, b1 = (np.rint(2 * a) for a in (x, W1, b1))
    arrays = x, W1, b1, W2, b2, dout
    for got, expected in zip(kernel(*arrays), textbook(*map(in_float64, arrays)), strict=True):
        assert got.dtype == dtype and got.shape == expected.shape
        assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def test_threads_do_not_matter_and_nothing_is_modified():
    arrays = example(1, np.float32, (16, 33), 61, 67)
    copies = [a.copy() for a in arrays]
    assert_threads_do_not_matter(lambda: kernel(*arrays))
    assert_same_bits(tuple(arrays), tuple(copies))


def test_backward_twice():
    x, W1, b1, W2, b2, dout = example(2, np.float64, (5,), 7, 9)
    _, cache = feedforward_forward(x, W1, b1, W2, b2)
    assert_same_bits(feedforward_backward(dout, cache), feedforward_backward(dout, cache))


def test_nan_comes_through():
    x, W1, b1, W2, b2, dout = example(3, np.float32, (5,), 7, 9)
    x[2, 0] = np.nan
    got, expected = (f(x, W1, b1, W2, b2)[0] for f in (feedforward_forward, ops.feedforward_forward))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert np.isnan(got[2]).all()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("x", np.ones((5, 3)), r"x must have 4 features to match W1 \(4, 6\)"),
        ("x", np.ones((5, 4), int), "x must be float32 or float64"),
        ("b1", np.ones(4), r"b1 must have shape \(6,\)"),
        ("W2", np.ones((5, 4)), r"W2 must have shape \(6, 4\)"),
        ("b2", np.ones(6), r"b2 must have shape \(4,\)"),
        ("b2", np.ones(4, np.float32), "b2 must have the dtype of x, float64, got float32"),
    ],
)
def test_bad_arguments(name, value, complaint):
    good = {"x": np.ones((5, 4)), "W1": np.ones((4, 6)), "b1": np.ones(6), "W2": np.ones((6, 4)), "b2": np.ones(4)}
    with pytest.raises(ValueError, match=complaint):
        feedforward_forward(**(good | {name: value}))
