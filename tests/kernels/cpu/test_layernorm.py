"""LayerNorm compiled: against the textbook over shapes; threads, views, NaN, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given

from tinyprune import ops
from tinyprune.kernels.cpu.layernorm import ROWS, layernorm_backward, layernorm_forward

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

EPS = 0.1  # rows of two numbers near each other would make much of any rounding with a small one


def there_and_back(forward, backward, x, scale, bias, dout):
    out, cache = forward(x, scale, bias, EPS)
    return out, *backward(dout, cache)


def kernel(*arrays):
    return there_and_back(layernorm_forward, layernorm_backward, *arrays)


def textbook(*arrays):
    return there_and_back(ops.layernorm_forward, ops.layernorm_backward, *map(in_float64, arrays))


def inputs(dtype, *first, D=37):
    return draw(3, dtype, (*first, D), (D,), (D,), (*first, D))


@each_dtype
@few
@given(first=leading, D=widths, seed=seeds)
@example(first=LARGE, D=37, seed=0)
def test_like_the_textbook(dtype, first, D, seed):
    x, scale, bias, dout = draw(seed, dtype, (*first, D), (D,), (D,), (*first, D))
    x = 3 * x + dtype(2)
    assert_close(kernel(x, scale, bias, dout), textbook(x, scale, bias, dout), dtype)


@each_dtype
@pytest.mark.parametrize("R", [ROWS - 1, ROWS, ROWS + 1, 5 * ROWS + 3])
def test_rows_around_the_size_of_a_block(dtype, R):
    arrays = inputs(dtype, R)
    assert_close(kernel(*arrays), textbook(*arrays), dtype)


def test_eps_is_a_hundred_thousandth_by_default():
    x, scale, bias, _ = inputs(np.float64, 4)
    x *= 1e-3
    assert_close(layernorm_forward(x, scale, bias)[0], ops.layernorm_forward(x, scale, bias)[0], np.float64)


def test_threads_do_not_matter():
    arrays = inputs(np.float32, *LARGE)
    assert_threads_do_not_matter(lambda: kernel(*arrays))


def test_views_are_read_where_they_lie():
    x, scale, bias, dout = inputs(np.float64, 6, 10)
    expected = textbook(x[:, 3:], scale, bias, dout[:, ::-1][:, 3:])
    spread = np.repeat(np.stack([scale, bias]), 2, axis=1)
    assert_close(kernel(x[:, 3:], spread[0, ::2], spread[1, ::2], dout[:, ::-1][:, 3:]), expected, np.float64)


def test_backward_twice_and_nothing_is_modified():
    x, scale, bias, dout = arrays = inputs(np.float64, 40)
    copies = [a.copy() for a in arrays]
    out, cache = layernorm_forward(x, scale, bias)
    out_before = out.copy()
    first = tuple(g.copy() for g in layernorm_backward(dout, cache))
    assert_same_bits(layernorm_backward(dout, cache), first)
    assert_same_bits((*arrays, out), (*copies, out_before))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [3, 36])  # in a whole vector, and after the last
def test_a_bad_number_spoils_its_row_alone(bad, place):
    x, scale, bias, dout = inputs(np.float32, 5)
    x[2, place] = bad
    out, cache = layernorm_forward(x, scale, bias)
    dx, dscale, dbias = layernorm_backward(dout, cache)
    for rows in (out, dx):
        assert np.isnan(rows[2]).all() and np.isfinite(np.delete(rows, 2, axis=0)).all()
    assert np.isnan(dscale).all() and np.isfinite(dbias).all()


@pytest.mark.parametrize(
    ("scale", "bias", "message"),
    [
        (np.ones(3), np.ones(4), r"scale must have shape \(4,\) to match x \(2, 4\), got \(3,\)"),
        (np.ones(4), np.ones((1, 4)), r"bias must have shape \(4,\) to match x \(2, 4\), got \(1, 4\)"),
        (np.ones(4), np.ones(4, np.float32), "bias must have the dtype of x, float64, got float32"),
    ],
)
def test_bad_arguments(scale, bias, message):
    with pytest.raises(ValueError, match=message):
        layernorm_forward(np.ones((2, 4)), scale, bias)


def test_bad_dtypes_and_gradients():
    with pytest.raises(ValueError, match="x must be float32 or float64 for a compiled kernel, got complex128"):
        layernorm_forward(np.ones((2, 4), complex), np.ones(4, complex), np.ones(4, complex))
    _, cache = layernorm_forward(np.ones((2, 4)), np.ones(4), np.ones(4))
    for bad in (np.ones((4, 2)), np.ones((2, 4), np.float32)):
        with pytest.raises(ValueError, match=r"dout must be float64 \(2, 4\) like the output"):
            layernorm_backward(bad, cache)
