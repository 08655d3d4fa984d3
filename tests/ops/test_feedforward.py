"""Feed-forward: the formula, hidden units that are off, shapes."""

import numpy as np
import pytest

from tinyprune.ops import feedforward_backward, feedforward_forward


def draw(rng, D=4, F=6):
    return rng.standard_normal((D, F)), rng.standard_normal(F), rng.standard_normal((F, D)), rng.standard_normal(D)


def test_the_formula(rng):
    x, (W1, b1, W2, b2) = rng.standard_normal((2, 3, 4)), draw(rng)
    out, _ = feedforward_forward(x, W1, b1, W2, b2)
    np.testing.assert_allclose(out, np.maximum(x @ W1 + b1, 0) @ W2 + b2)


def test_a_hidden_unit_that_is_off_takes_no_part(rng):
    x, (W1, b1, W2, b2) = rng.standard_normal((2, 3, 4)), draw(rng)
    b1[2] = -100
    out, cache = feedforward_forward(x, W1, b1, W2, b2)
    _, dW1, db1, dW2, _ = feedforward_backward(rng.standard_normal(out.shape), cache)
    assert not dW1[:, 2].any() and not db1[2] and not dW2[2].any()
    assert dW1[:, [0, 1, 3, 4, 5]].any(0).all()
    W2[2] *= 9
    np.testing.assert_array_equal(feedforward_forward(x, W1, b1, W2, b2)[0], out)


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("x", (5, 3), r"x must have 4 features to match W1 \(4, 6\)"),
        ("W1", (6,), r"W1 must be \(D, F\), got \(6,\)"),
        ("b1", (4,), r"b1 must have shape \(6,\)"),
        ("W2", (5, 4), r"W2 must have shape \(6, 4\)"),
        ("W2", (6, 5), r"W2 must have shape \(6, 4\)"),
        ("b2", (6,), r"b2 must have shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, complaint):
    shapes = {"x": (5, 4), "W1": (4, 6), "b1": (6,), "W2": (6, 4), "b2": (4,)} | {name: shape}
    with pytest.raises(ValueError, match=complaint):
        feedforward_forward(*(np.ones(shape) for shape in shapes.values()))
