"""Linear against the textbook: shapes, views, a vector, bad arguments."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("first", "K", "O"),
    [((2, 3), 5, 7), ((70,), 33, 9), ((), 6, 5), ((1,), 4, 4), ((2, 0), 3, 2), ((9,), 0, 4), ((9,), 4, 0), ((), 0, 3)],
)
def test_equals_textbook(place, first, K, O, bias):
    x, W, b, dout = normal((*first, K), (K, O), (O,), (*first, O))
    assert_equal_to_textbook("linear", (x, W, b if bias else None), dout)


def test_the_embedding_transposed_and_the_last_positions(place):
    n, E, b, dout = normal((2, 7, 12), (33, 12), (33,), (2, 5, 33))
    out, cache = cuda.linear_forward(to_device(n)[:, 2:], to_device(E).T, to_device(b))
    wide = [x.astype(np.float64) for x in (n[:, 2:], E.T, b, dout)]
    expected, expected_cache = ops.linear_forward(*wide[:3])
    assert_close(out, expected)
    dx, dW, db = cuda.linear_backward(to_device(dout), cache)
    assert_close((dx, dW, db), ops.linear_backward(wide[3], expected_cache))
    assert dW.T.contiguous


def test_a_vector_and_gradients_that_are_views(place):
    x, W, dout = normal((3, 6), (6, 5), (5, 2))
    out, cache = cuda.linear_forward(to_device(x)[:, 1], to_device(W)[:3])
    expected, expected_cache = ops.linear_forward(x[:, 1].astype(np.float64), W[:3].astype(np.float64))
    assert_close(out, expected)
    got = cuda.linear_backward(to_device(dout)[:, 1], cache)
    assert_close(got, ops.linear_backward(dout[:, 1].astype(np.float64), expected_cache))


@pytest.mark.parametrize(
    ("x", "W", "b", "message"),
    [
        ((5, 4), (3, 2), None, r"x must have 3 features to match W \(3, 2\), got x \(5, 4\)"),
        ((), (1, 2), None, r"x must have 1 features to match W \(1, 2\), got x \(\)"),
        ((5, 3), (3, 2, 2), None, r"x must have 3 features to match W \(3, 2, 2\)"),
        ((5, 3), (3, 2), (3,), r"b must have shape \(2,\) to match W \(3, 2\), got \(3,\)"),
    ],
)
def test_bad_arguments(place, x, W, b, message):
    given = [np.ones(shape) for shape in (x, W, b) if shape is not None]
    for forward, as_given in ((ops.linear_forward, list), (cuda.linear_forward, lambda xs: map(in_float32, xs))):
        with pytest.raises(ValueError, match=message):
            forward(*as_given(given))


def in_float32(x):
    """In the GPU's memory."""
    return to_device(x.astype(np.float32))


def test_bad_places_and_gradients(place):
    x, W = map(in_float32, (np.ones((5, 3)), np.ones((3, 2))))
    for name in ("x", "W", "b"):
        with pytest.raises(ValueError, match=f"{name} must be in the GPU's memory, got ndarray"):
            cuda.linear_forward(**{"x": x, "W": W, name: np.ones((3, 2))})
    _, cache = cuda.linear_forward(x, W)
    with pytest.raises(ValueError, match=r"dout must have shape \(5, 2\) like the output, got \(5, 3\)"):
        cuda.linear_backward(x, cache)
