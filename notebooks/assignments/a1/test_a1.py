"""Tests of a1: pytest a1, or one task: pytest a1 -m a1_1"""

from tinyprune import ops
from tinyprune.course import answer, expect_close, expect_gradients, expect_unmodified

import numpy as np

import pytest


@pytest.mark.a1_1
@pytest.mark.points(1)
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
    out, _ = forward(np.eye(4), W, np.zeros(5))
    expect_close(
        out,
        W,
        "the identity must come out as W",
        fed="x = np.eye(4), W (4, 5), b zeros",
        hint="row k of the identity picks one row of W",
    )


@pytest.mark.a1_1
@pytest.mark.points(2)
def test_a1_1_backward():
    rng = np.random.default_rng(2)
    expect_gradients(
        "linear_backward",
        ops.linear_forward,
        {
            "x": rng.standard_normal((6, 4)),
            "W": rng.standard_normal((4, 5)),
            "b": rng.standard_normal(5),
        },
        hint={
            "x": "each x meets a whole row of W: which axis of W does dout have?",
            "W": "each entry of W meets all rows of x: what is summed?",
            "b": "b is added to every row",
            "": "one gradient for each input, in the order of the inputs, each of its input's shape",
        },
    )


@pytest.mark.a1_2
@pytest.mark.points(2)
def test_a1_2_forward():
    rng = np.random.default_rng(4)
    forward = answer("layernorm_forward")
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
        np.mean(np.square(out), -1),
        np.ones((2, 3)),
        "every position must have variance 1, up to eps",
        fed=fed,
        hint="divide by the root of the mean of the squares",
        relative=1e-5,
    )


@pytest.mark.a1_2
@pytest.mark.points(3)
def test_a1_2_backward():
    rng = np.random.default_rng(6)
    expect_gradients(
        "layernorm_backward",
        ops.layernorm_forward,
        {
            "x": rng.standard_normal((3, 5)),
            "scale": rng.standard_normal(5),
            "bias": rng.standard_normal(5),
        },
        hint={
            "x": "three roads: straight, through the mean, through the root. Which one is missing?",
            "scale": "scale multiplies n, at every position",
            "bias": "bias is added at every position",
            "": "one gradient for each input, in the order of the inputs, each of its input's shape",
        },
    )


@pytest.mark.a1_3
@pytest.mark.points(2)
def test_a1_3_forward():
    forward = answer("cross_entropy_forward")
    targets = np.array([[0, 2, 1], [4, 3, 0]])
    loss, _ = forward(np.zeros((2, 3, 5)), targets)
    expect_close(
        loss,
        np.log(5),
        "with equal logits each of 5 words has p = 1/5, and the loss must be log 5",
        fed={"logits": "zeros (2, 3, 5)", "targets": targets},
        hint="natural logarithm; a mean over all six positions",
    )
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    loss, _ = forward(logits, np.array([0, 2]))
    expect_close(
        loss,
        -(np.log(0.7) + np.log(0.5)) / 2,
        "logits that are logarithms of probabilities must give these probabilities back",
        fed={"logits": logits, "targets": "[0 2]"},
        hint="−log p of the word that came, not of the others",
    )


@pytest.mark.a1_3
@pytest.mark.points(2)
def test_a1_3_backward():
    rng = np.random.default_rng(10)
    expect_gradients(
        "cross_entropy_backward",
        ops.cross_entropy_forward,
        {"logits": rng.standard_normal((4, 5)), "targets": np.array([1, 0, 4, 1])},
        hint={
            "logits": "each logit acts through its own −log p and through the sum; is the mean in it, is dout?",
            "": "one gradient comes back, dlogits, of the shape of the logits; the cache stays as it is",
        },
    )
