"""Linear: the sums written out, no bias, axes of size 0."""

import numpy as np
import pytest

from tinyprune.ops import linear_backward, linear_forward


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 0, 4)], ids=str)
def test_the_sums_written_out(lead, rng):
    x, W, b = rng.standard_normal((*lead, 3)), rng.standard_normal((3, 2)), rng.standard_normal(2)
    out, cache = linear_forward(x, W, b)
    np.testing.assert_allclose(out, np.einsum("...k,ko->...o", x, W) + b)
    dout = rng.standard_normal(out.shape)
    dx, dW, db = linear_backward(dout, cache)
    np.testing.assert_allclose(dx, np.einsum("...o,ko->...k", dout, W))
    np.testing.assert_allclose(dW, np.einsum("rk,ro->ko", x.reshape(-1, 3), dout.reshape(-1, 2)))
    np.testing.assert_allclose(db, dout.reshape(-1, 2).sum(0))


def test_without_a_bias(rng):
    x, W = rng.standard_normal((4, 3)), rng.standard_normal((3, 2))
    out, cache = linear_forward(x, W)
    np.testing.assert_allclose(out, x @ W)
    assert linear_backward(out, cache)[2] is None


def test_a_layer_without_heads_has_inputs_of_width_0():
    x, W, b = np.zeros((2, 3, 0)), np.zeros((0, 4)), np.arange(4.0)
    out, cache = linear_forward(x, W, b)
    np.testing.assert_array_equal(out, np.broadcast_to(b, (2, 3, 4)))
    dx, dW, db = linear_backward(np.ones_like(out), cache)
    assert dx.shape == x.shape and dW.shape == W.shape
    np.testing.assert_array_equal(db, np.full(4, 6.0))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"x must have 3 features to match W \(3, 2\), got x \(5, 4\)"):
        linear_forward(np.ones((5, 4)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"b must have shape \(2,\)"):
        linear_forward(np.ones((5, 3)), np.ones((3, 2)), np.ones(3))
