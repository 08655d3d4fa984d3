"""Dropout against the textbook: the same entries dropped, in forward and in backward."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize("shape", [(2, 3, 130), (1,), (0, 4), ()])
@pytest.mark.parametrize("rate", [0.1, 0.99])
def test_equals_textbook(place, shape, rate):
    x, dout = normal(shape, shape)
    assert_equal_to_textbook("dropout", (x, rate), dout, seed=5)


def test_exactly_the_textbooks_entries_are_dropped(place):
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    x = np.ones((7, 100), np.float32)
    for rate in (0.3, 0.0, 0.5):
        out, _ = cuda.dropout_forward(to_device(x), rate, ours)
        assert np.array_equal(to_host(out) == 0, ops.dropout_forward(x, rate, theirs)[0] == 0)
    assert ours.bit_generator.state == theirs.bit_generator.state


@pytest.mark.parametrize(("rate", "rng"), [(0.5, None), (0.0, np.random.default_rng(0))])
def test_evaluation_and_rate_0_are_the_identity(place, rate, rng):
    x = to_device(np.ones((3, 4), np.float32))
    out, cache = cuda.dropout_forward(x, rate, rng)
    assert out is x and cuda.dropout_backward(x, cache) is x


def test_views_are_numbered_like_arrays_without_gaps(place):
    x, dout = normal((6, 10), (7, 6))
    out, cache = cuda.dropout_forward(to_device(x)[:, 3:], 0.3, np.random.default_rng(5))
    dx = cuda.dropout_backward(to_device(dout).T, cache)
    expected, cache = ops.dropout_forward(x[:, 3:].astype(float), 0.3, np.random.default_rng(5))
    assert_close((out, dx), (expected, ops.dropout_backward(dout.T.astype(float), cache)))


def test_nan_and_inf_are_not_hidden_by_being_dropped(place):
    x = np.array([np.nan, np.inf, -np.inf, 1.0] * 10, np.float32)
    with np.errstate(invalid="ignore"):
        out, _ = cuda.dropout_forward(to_device(x), 0.5, np.random.default_rng(2))
        expected, _ = ops.dropout_forward(x, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(to_host(out), expected)


def test_bad_arguments(place):
    x = to_device(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1, got 1"):
        cuda.dropout_forward(x, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="x must be in the GPU's memory, got ndarray"):
        cuda.dropout_forward(np.ones(3), 0.5, np.random.default_rng(0))
    _, cache = cuda.dropout_forward(x, 0.5, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"dout must have shape \(3,\) like the output, got \(2,\)"):
        cuda.dropout_backward(x[:2], cache)
