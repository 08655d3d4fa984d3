"""Tests of a1: pytest a1, or one task: pytest a1 -m a1_1"""

from tinyprune import ops
from tinyprune.course import answer, expect_close, expect_gradients, expect_unmodified


def formula_of_linear(x, W, b):
    """What a1_1 asks for, in complex numbers too."""
    return ops.linear_forward(x / len(W) ** (1 / 2), W, b)[0], (x, W)


def formula_of_norm(x, scale, bias, eps=1e-5):
    """What a1_2 asks for, row by row, in complex numbers too."""

    def of_row(row):
        c = row - row.sum() / row.size
        root = ((c**4).sum() / row.size + eps) ** (1 / 4)
        return np.append(c / root, root)

    rows = np.apply_along_axis(of_row, -1, x)
    return rows[..., :-1] * scale + bias, (rows[..., :-1], rows[..., -1:], scale)


def formula_of_cross_entropy(logits, targets):
    """What a1_3 asks for, in complex numbers too."""
    log_p = ops.log_softmax(logits)
    rows = log_p.reshape(targets.size, -1)
    own = rows[np.arange(targets.size), targets.ravel()]
    return -(0.9 * own + 0.1 * rows.mean(1)).mean(), (log_p, targets)

import numpy as np

import pytest


@pytest.mark.a1_1
@pytest.mark.points(2)
def test_a1_1_forward():
    rng = np.random.default_rng(0)
    forward = answer("linear_forward")
    W, b = rng.standard_normal((4, 5)), rng.standard_normal(5)
    out, _ = forward(np.zeros((2, 3, 4)), W, b)
    expect_close(
        out,
        np.tile(b, (2, 3, 1)),
        "a row of zeros must come out as the bias",
        fed="x zeros (2, 3, 4), W (4, 5), b (5,)",
        hint="what is left of x W + b if x is 0?",
    )
    out, _ = forward(4 ** (1 / 2) * np.eye(4), W, np.zeros(5))
    expect_close(
        out,
        W,
        "the identity, times the power of K, must come out as W",
        fed="x = np.eye(4) times the power of K, W (4, 5), b zeros",
        hint="row k of the identity picks one row of W, and the power of K cancels",
    )


@pytest.mark.a1_1
@pytest.mark.points(3)
def test_a1_1_backward():
    rng = np.random.default_rng(2)
    for shape in ((6, 4), (2, 3, 4)):
        expect_gradients(
            "linear_backward",
            formula_of_linear,
            {
                "x": rng.standard_normal(shape),
                "W": rng.standard_normal((4, 5)),
                "b": rng.standard_normal(5),
            },
            hint={
                "x": "each x is multiplied by a whole row of W: which axis of W does dout have? And the power of K?",
                "W": "each entry of W is used by all rows of x, over all leading axes: what is summed?",
                "b": "b is added to every row, over all leading axes",
                "": "one gradient for each input, in the order of the inputs, each with the shape of its input",
            },
        )


@pytest.mark.a1_2
@pytest.mark.points(3)
def test_a1_2_forward():
    rng = np.random.default_rng(4)
    forward = answer("norm_forward")
    x = 3 + 10 * rng.standard_normal((2, 3, 8))
    out, _ = forward(x, np.ones(8), np.zeros(8))
    fed = {"x": x, "scale": "ones (8,)", "bias": "zeros (8,)"}
    expect_close(
        np.mean(out, -1),
        np.zeros((2, 3)),
        "every position must have mean 0",
        fed=fed,
        hint="over which axis is the mean taken, and is it kept as an axis?",
    )
    expect_close(
        np.mean(np.asarray(out) ** 4, -1),
        np.ones((2, 3)),
        "the fourth powers of every position must have mean 1, up to eps",
        fed=fed,
        hint="divide by the fourth root of the mean of the fourth powers",
        relative=1e-5,
    )


@pytest.mark.a1_2
@pytest.mark.points(6)
def test_a1_2_backward():
    rng = np.random.default_rng(6)
    for shape in ((3, 5), (2, 3, 5)):
        expect_gradients(
            "norm_backward",
            formula_of_norm,
            {
                "x": rng.standard_normal(shape),
                "scale": rng.standard_normal(5),
                "bias": rng.standard_normal(5),
            },
            hint={
                "x": "three paths: straight, through the root, through the mean. Which one is missing?",
                "scale": "scale multiplies n, at every position, over all leading axes",
                "bias": "bias is added at every position, over all leading axes",
                "": "one gradient for each input, in the order of the inputs, each with the shape of its input",
            },
        )


@pytest.mark.a1_3
@pytest.mark.points(3)
def test_a1_3_forward():
    forward = answer("cross_entropy_forward")
    targets = np.array([[0, 2, 1], [4, 3, 0]])
    loss, _ = forward(np.zeros((2, 3, 5)), targets)
    expect_close(
        loss,
        np.log(5),
        "with equal logits each of 5 tokens has p = 1/5, and the loss must be log 5",
        fed={"logits": "zeros (2, 3, 5)", "targets": targets},
        hint="natural logarithm; a mean over all six positions",
    )
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    loss, _ = forward(logits, np.array([0, 2]))
    target, others = np.log([0.7, 0.5]), logits.mean(1)
    expect_close(
        loss,
        -(0.9 * target + 0.1 * others).mean(),
        "logits that are logarithms of probabilities must give these probabilities back",
        fed={"logits": logits, "targets": "[0 2]"},
        hint="0.9 of −log p of the target, and 0.1 of the mean of −log p over all tokens, the target included",
    )


@pytest.mark.a1_3
@pytest.mark.points(3)
def test_a1_3_backward():
    rng = np.random.default_rng(10)
    expect_gradients(
        "cross_entropy_backward",
        formula_of_cross_entropy,
        {"logits": rng.standard_normal((4, 5)), "targets": np.array([1, 0, 4, 1])},
        hint={
            "logits": "each logit changes every −log p of its row; are the mean and dout there?",
            "": "return one gradient, dlogits, with the shape of the logits; do not modify the cache",
        },
    )
