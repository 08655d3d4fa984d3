"""Linear compiled: against the textbook over shapes; views, no bias, threads, bad arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.linear import column_sums, linear_backward, linear_forward

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


def assert_near(got, expected, dtype):
    """Norm-wise: a sum's rounding is relative to its terms, which may cancel in one entry but not in all."""
    assert got.dtype == dtype and got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def compare(x, W, b, dout):
    dtype = x.dtype.type
    out, cache = linear_forward(x, W, b)
    wide = [in_float64(a) for a in (x, W, b, dout)]
    expected, ops_cache = ops.linear_forward(*wide[:3])
    assert_near(out, expected, dtype)
    for got, gradient in zip(linear_backward(dout, cache), ops.linear_backward(wide[3], ops_cache), strict=True):
        if gradient is None:
            assert got is None
        else:
            assert_near(got, gradient, dtype)


@each_dtype
@few
@given(first=leading, K=widths, O=widths, bias=st.booleans(), seed=seeds)
def test_like_the_textbook(dtype, first, K, O, bias, seed):
    x, W, b, dout = draw(seed, dtype, (*first, K), (K, O), (O,), (*first, O))
    compare(x, W, b if bias else None, dout)


@each_dtype
def test_the_embedding_transposed_and_the_last_positions(dtype):
    n, E, b, dout = draw(1, dtype, (3, 70, 37), (103, 37), (103,), (3, 64, 103))
    compare(n[:, 6:], E.T, b, dout)


def test_no_heads_no_rows():
    for K, O in ((0, 4), (4, 0)):
        compare(np.ones((2, 3, K)), np.ones((K, O)), np.arange(float(O)), np.ones((2, 3, O)))


def test_nothing_is_modified_and_threads_do_not_matter():
    x, W, b, dout = arrays = draw(2, np.float32, (16, 64, 61), (61, 67), (67,), (16, 64, 67))
    copies = [a.copy() for a in arrays]

    def there_and_back():
        out, cache = linear_forward(x, W, b)
        return out, *linear_backward(dout, cache)

    assert_threads_do_not_matter(there_and_back)
    assert_same_bits(tuple(arrays), tuple(copies))


def test_column_sums_are_exact_where_numbers_are():
    rows = np.arange(2000 * 130, dtype=np.float64).reshape(2, 1000, 130)
    np.testing.assert_array_equal(column_sums(rows), rows.sum((0, 1)))


@pytest.mark.parametrize(
    ("x", "W", "b", "message"),
    [
        (np.ones((5, 4)), np.ones((3, 2)), None, r"x must have 3 features to match W \(3, 2\), got x \(5, 4\)"),
        (np.array(1.0), np.ones((1, 2)), None, r"x must have 1 features to match W \(1, 2\), got x \(\)"),
        (np.ones((5, 3)), np.ones((3, 2, 2)), None, r"x must have 3 features to match W \(3, 2, 2\)"),
        (np.ones((5, 3)), np.ones((3, 2)), np.ones(3), r"b must have shape \(2,\)"),
        (np.ones((5, 3)), np.ones((3, 2), np.float32), None, "W must have the dtype of x, float64, got float32"),
        (np.ones((5, 3)), np.ones((3, 2)), np.ones(2, np.float32), "b must have the dtype of x, float64, got float32"),
        (np.ones((5, 3), int), np.ones((3, 2), int), None, "x must be float32 or float64"),
    ],
)
def test_bad_arguments(x, W, b, message):
    with pytest.raises(ValueError, match=message):
        linear_forward(x, W, b)


def test_bad_gradients():
    _, cache = linear_forward(np.ones((5, 3)), np.ones((3, 2)))
    for bad in (np.ones((5, 3)), np.ones((5, 2), np.float32)):
        with pytest.raises(ValueError, match=r"dout must be float64 \(5, 2\) like the output"):
            linear_backward(bad, cache)
