"""Feed-forward against the textbook; NaN, bad arguments."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


def example(first, D, F):
    """Small whole numbers before the kink, whose sums are exact: rounding decides the side of none."""
    x, W1, b1, W2, b2, dout = normal((*first, D), (D, F), (F,), (F, D), (D,), (*first, D))
    return [np.rint(2 * a) for a in (x, W1, b1)] + [W2, b2], dout


@pytest.mark.parametrize(
    ("first", "D", "F"), [((2, 5), 6, 9), ((3,), 7, 33), ((), 4, 5), ((0,), 3, 4), ((9,), 3, 0), ((70,), 5, 16)]
)
def test_equals_textbook(place, first, D, F):
    arguments, dout = example(first, D, F)
    assert_equal_to_textbook("feedforward", arguments, dout)


@pytest.mark.parametrize("rows", [3, 9])
def test_nan_comes_through(place, rows):
    arguments, dout = example((rows,), 7, 9)
    arguments[0][2, 0] = np.nan
    dout[1, 2] = np.nan
    out, cache = cuda.feedforward_forward(*map(to_device, arguments))
    expected, expected_cache = ops.feedforward_forward(*arguments)
    assert_close(out, expected)
    assert np.isnan(to_host(out)[2]).all()
    grads = cuda.feedforward_backward(to_device(dout), cache)
    for got, gradient in zip(grads, ops.feedforward_backward(dout, expected_cache), strict=True):
        assert np.array_equal(np.isnan(to_host(got)), np.isnan(gradient))


def test_backward_twice(place):
    arguments, dout = example((5,), 7, 9)
    _, cache = cuda.feedforward_forward(*map(to_device, arguments))
    first, second = (cuda.feedforward_backward(to_device(dout), cache) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(to_host(one), to_host(other))


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("x", (5, 3), r"x must have 4 features to match W1 \(4, 6\)"),
        ("W1", (4,), r"W1 must be \(D, F\), got \(4,\)"),
        ("b1", (4,), r"b1 must have shape \(6,\)"),
        ("W2", (5, 4), r"W2 must have shape \(6, 4\)"),
        ("b2", (6,), r"b2 must have shape \(4,\)"),
    ],
)
def test_bad_arguments(place, name, shape, complaint):
    good = {"x": (5, 4), "W1": (4, 6), "b1": (6,), "W2": (6, 4), "b2": (4,)}
    given = {key: to_device(np.ones(value, np.float32)) for key, value in (good | {name: shape}).items()}
    with pytest.raises(ValueError, match=complaint):
        cuda.feedforward_forward(**given)
    given[name] = np.ones(shape)
    with pytest.raises(ValueError, match=f"{name} must be in the GPU's memory, got ndarray"):
        cuda.feedforward_forward(**given)
