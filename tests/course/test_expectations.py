"""Expectations of answers, and the messages of those that fail."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.course import expect, expect_close, expect_gradients, expect_unmodified, submission
from tinyprune.course.expectations import Unexpected

FORM = {"fed": "x", "hint": "look there"}


def said(function, *args, **options):
    with pytest.raises(Unexpected) as error:
        function(*args, **options)
    return str(error.value)


def test_failure_has_four_parts():
    text = said(expect, False, "the sum is not 1", fed={"x": np.ones(2), "n": 3}, came=2.0, expected=1.0, hint="divide")
    lines = text.splitlines()
    assert lines[0] == "the sum is not 1"
    assert [line[:10].strip() for line in lines[1:] if line[:10].strip()] == ["input", "got", "expected", "hint"]
    assert "float64 array of shape (2,): [1. 1.]" in text
    assert "n = 3" in text
    expect(True, "holds", came=1, expected=1, **FORM)


CLOSE = [(1.0, 1.0), (np.ones((2, 3)), np.ones((2, 3))), (np.float32([1, 2]), [1, 2]), (True, 1), (np.inf, np.inf)]
CLOSE += [(1 + 5e-08, 1.0), ([[1, 2]], np.array([[1.0, 2.0]])), (np.zeros((0, 3)), np.zeros((0, 3)))]
APART = [(1 + 2e-07, 1.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf), (None, 1.0), ("text" * 10**5, 1.0)]
APART += [([[1], [1, 2]], 1.0), (np.ones(3), np.ones((3, 1))), (np.ones(1), 1.0), ({"a": 1}, 1.0), (print, 1.0)]


@pytest.mark.parametrize(("came", "expected"), CLOSE, ids=str)
def test_close_enough(came, expected):
    expect_close(came, expected, "title", **FORM)


@pytest.mark.parametrize(("came", "expected"), [*APART, (1e-08, 0.0)], ids=lambda value: str(value)[:20])
def test_not_close_enough(came, expected):
    assert len(said(expect_close, came, expected, "title", **FORM)) < 10_000


def test_worst_entry_is_named():
    came = np.zeros((2, 3))
    came[1, 2], came[0, 0] = 5, 1
    text = said(expect_close, came, np.zeros((2, 3)), "title", **FORM)
    assert "2 of 6 entries differ; the worst is at [1, 2]" in text
    assert "got       5 " in text


INPUTS = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)), "W": np.eye(4)[:, :3] + 0.1, "b": np.ones(3)}


def gradients(forward, backward, hint="look there"):
    with submission(SimpleNamespace(linear_forward=forward, linear_backward=backward)):
        expect_gradients("linear_backward", ops.linear_forward, INPUTS, hint=hint)


def own_forward(x, W, b):
    return np.einsum("btk,ko->bto", x.real, W.real) + b.real, {"inputs": (x, W)}


def own_backward(dout, cache):
    x, W = cache["inputs"]
    return dout @ W.T, np.einsum("btk,bto->ko", x, dout), dout.sum((0, 1))


def plain_backward(dout, cache):
    x, W, _ = cache
    return own_backward(dout, {"inputs": (x, W)})


def in_place(x, W, b):
    """It costs no points of the backward that the forward modifies its input."""
    out = own_forward(x.copy(), W, b)
    x *= 0
    return out


def test_right_backward_passes_with_the_cache_of_its_forward_or_of_the_formula():
    gradients(own_forward, own_backward)
    for wrong in (lambda x, W, b: (x @ W, None), mock.Mock(side_effect=NotImplementedError()), in_place):
        gradients(wrong, plain_backward)


def test_wrong_gradient_is_named_with_its_hint():
    def backward(dout, cache):
        dx, dW, db = own_backward(dout, cache)
        return dx, dW * (1 + 1e-9), db

    text = said(gradients, own_forward, backward, {"x": "of x", "W": "of W", "b": "of b"})
    assert text.startswith("linear_backward: dW is not the derivative")
    for part in ("hint      of W", "x (2, 3, 4)\n", "got       dW[", "cache of your own forward"):
        assert part in text


def test_wrong_form_and_a_modified_cache_are_named_as_the_checker_does():
    def modifies(dout, cache):
        result = own_backward(dout, cache)
        cache["inputs"][0][...] = 0
        return result

    text = said(gradients, own_forward, lambda dout, cache: own_backward(dout, cache)[:2], {"": "the form"})
    assert "must return 3 gradients, got 2" in text and "hint      the form" in text
    assert "must not modify its cache" in said(gradients, own_forward, modifies)


def test_inputs_without_gradient_can_be_named():
    module = SimpleNamespace(scale_forward=lambda x, s, u: (s * x, s), scale_backward=lambda dout, s: s * dout)
    inputs = {"x": np.arange(3.0), "s": 2.0, "u": None}
    arguments, options = ("scale_backward", module.scale_forward, inputs), {"hint": "", "fixed": ("s", "u")}
    with submission(module):
        expect_gradients(*arguments, **options)
        module.scale_backward = lambda dout, s: dout
        assert "dx is not the derivative" in said(expect_gradients, *arguments, **options)


def test_modified_input_is_named():
    def modifies(x, n, y):
        y += n

    expect_unmodified(lambda x, n: x + n, np.array([1.0, np.nan]), 3)
    text = said(expect_unmodified, modifies, np.zeros(2), 1, np.zeros(3))
    assert text.startswith("modifies modifies one of its inputs")
    assert "float64 array of shape (3,): [1. 1. 1.]" in text
