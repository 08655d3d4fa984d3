"""Layer-wise error compiled, against the textbook; threads, views, bad arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.layerwise_error import layerwise_error_backward, layerwise_error_forward

from .compare import assert_same_bits, assert_threads_do_not_matter, draw, each_dtype, few, in_float64, seeds, widths

BOUND = {np.float32: 1e-5, np.float64: 1e-12}


def example(seed, dtype, B, T, H, Dh, D):
    """gate, o, Wo, bo."""
    return draw(seed, dtype, (H,), (B, T, H, Dh), (H * Dh, D), (D,))


def there_and_back(forward, backward, *arrays, scale=1.5):
    error, cache = forward(*arrays, scale)
    return error, backward(0.7, cache)


def kernel(*arrays):
    return there_and_back(layerwise_error_forward, layerwise_error_backward, *arrays)


def textbook(*arrays):
    return there_and_back(ops.layerwise_error_forward, ops.layerwise_error_backward, *arrays)


@each_dtype
@few
@given(B=st.integers(1, 3), T=widths, H=st.sampled_from([1, 2, 3, 7]), Dh=st.integers(1, 17), D=widths, seed=seeds)
def test_like_the_textbook(dtype, B, T, H, Dh, D, seed):
    arrays = example(seed, dtype, B, T, H, Dh, D)
    error, dgate = kernel(*arrays)
    expected, expected_dgate = textbook(*map(in_float64, arrays))
    assert error.dtype == dgate.dtype == dtype
    # All terms of both are of the size of ‖y_gated − y_full‖² for gates of about 1.
    size = max(1.0, abs(expected), np.abs(expected_dgate).max())
    assert abs(error - expected) <= BOUND[dtype] * size
    assert np.abs(dgate - expected_dgate).max() <= BOUND[dtype] * size


def test_without_heads_or_positions():
    for B, H in ((2, 0), (0, 3)):
        arrays = example(1, np.float64, B, 4, H, 5, 7)
        assert_same_bits(kernel(*arrays), textbook(*arrays))


def test_threads_do_not_matter_and_nothing_is_modified():
    arrays = example(2, np.float32, 8, 64, 4, 16, 61)
    copies = [a.copy() for a in arrays]
    assert_threads_do_not_matter(lambda: kernel(*arrays))
    assert_same_bits(tuple(arrays), tuple(copies))


def test_views():
    gate, o, Wo, bo = example(3, np.float64, 2, 9, 3, 5, 7)
    expected = kernel(gate, o, Wo, bo)
    assert_same_bits(kernel(gate, np.repeat(o, 2, axis=-1)[..., ::2], np.asfortranarray(Wo), bo), expected)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("gate", np.ones(2), r"gate must have shape \(3,\)"),
        ("bo", np.ones(6), r"bo must have shape \(7,\)"),
        ("Wo", np.ones((7, 15)), r"Wo must have shape \(15, D\)"),
        ("Wo", np.ones((15, 7), np.float32), "Wo must have the dtype of gate, float64, got float32"),
        ("o", np.ones((2, 9, 3, 5), complex), "o must have the dtype of gate, float64, got complex128"),
    ],
)
def test_bad_arguments(name, value, complaint):
    good = dict(zip(("gate", "o", "Wo", "bo"), example(4, np.float64, 2, 9, 3, 5, 7), strict=True))
    with pytest.raises(ValueError, match=complaint):
        layerwise_error_forward(**(good | {name: value}))
