"""Context: memory first, then the segment; only the segment has a gradient."""

import numpy as np
import pytest

from tinyprune.ops import context_backward, context_forward


@pytest.mark.parametrize("length", [1, 3, 6])
def test_memory_then_segment_and_the_gradient_of_the_segment_alone(length, rng):
    m, x = rng.standard_normal((2, length, 5)), rng.standard_normal((2, 4, 5))
    context, cache = context_forward(m, x)
    np.testing.assert_array_equal(context[:, :length], m)
    np.testing.assert_array_equal(context[:, length:], x)
    dcontext = rng.standard_normal(context.shape)
    dx = context_backward(dcontext, cache)
    np.testing.assert_array_equal(dx, dcontext[:, -4:])
    assert np.shares_memory(dx, dcontext)


@pytest.mark.parametrize("m", [None, np.zeros((2, 0, 5))], ids=["None", "empty"])
def test_no_memory(m, rng):
    x = rng.standard_normal((2, 4, 5))
    context, cache = context_forward(m, x)
    np.testing.assert_array_equal(context, x)
    assert m is not None or context is x
    np.testing.assert_array_equal(context_backward(x, cache), x)


def test_a_memory_that_is_a_view_and_real_before_a_complex_segment(rng):
    m, x = rng.standard_normal((2, 6, 5))[:, -3:], rng.standard_normal((2, 4, 5)) + 1e-20j
    context, _ = context_forward(m, x)
    assert context.dtype == np.complex128
    np.testing.assert_array_equal(context[:, :3], m)
    np.testing.assert_array_equal(context[:, 3:], x)


@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 2, 4), (2, 5)])
def test_a_memory_of_another_batch_or_width(shape):
    with pytest.raises(ValueError, match=r"m must be \(2, M', 5\) to match x \(2, 4, 5\), got"):
        context_forward(np.zeros(shape), np.zeros((2, 4, 5)))


def test_a_segment_without_a_batch():
    with pytest.raises(ValueError, match=r"x must be \(B, T, D\), got \(4, 5\)"):
        context_forward(None, np.zeros((4, 5)))
