"""Residual: the sum, and in it the same dropout as `dropout_forward`'s."""

import numpy as np
import pytest

from tinyprune.ops import dropout_backward, dropout_forward, residual_backward, residual_forward


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_dropout_and_then_the_sum(dropout, rng):
    x, y, dout = rng.standard_normal((3, 4, 5, 6))
    out, cache = residual_forward(x, y, dropout, np.random.default_rng(8))
    dropped, dropout_cache = dropout_forward(y, dropout, np.random.default_rng(8))
    np.testing.assert_array_equal(out, x + dropped)
    dx, dy = residual_backward(dout, cache)
    np.testing.assert_array_equal(dx, dout)
    np.testing.assert_array_equal(dy, dropout_backward(dout, dropout_cache))
    assert ((out == x).any(), (dy == 0).any()) == (dropout > 0, dropout > 0)


@pytest.mark.parametrize(("dropout", "generator"), [(0.5, None), (0.0, np.random.default_rng(0))])
def test_evaluation_and_dropout_0_drop_nothing_and_draw_nothing(dropout, generator, rng):
    x, y = rng.standard_normal((2, 3, 4))
    state = generator and generator.bit_generator.state
    out, cache = residual_forward(x, y, dropout, generator)
    np.testing.assert_array_equal(out, x + y)
    np.testing.assert_array_equal(residual_backward(x, cache), [x, x])
    assert (generator and generator.bit_generator.state) == state


def test_it_draws_two_keys_as_dropout_does(rng):
    x, y = rng.standard_normal((2, 3, 4))
    one, two = np.random.default_rng(8), np.random.default_rng(8)
    residual_forward(x, y, 0.5, one)
    dropout_forward(y, 0.5, two)
    assert one.bit_generator.state == two.bit_generator.state


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"y must have the shape of x, \(2, 3\), got \(1, 3\)"):
        residual_forward(np.ones((2, 3)), np.ones((1, 3)))
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout must be at least 0 and below 1, got {dropout}"):
            residual_forward(np.ones(3), np.ones(3), dropout, np.random.default_rng(0))
