"""Slices compiled: the textbook's numbers to the last bit; bad arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.slices import put_slices, take_slices

from .compare import assert_same_bits, draw, each_dtype, few, seeds


@each_dtype
@few
@given(
    before=st.sampled_from([(), (1,), (5,), (0,), (3, 7)]),
    after=st.sampled_from([(), (1,), (13,), (4, 16), (0,)]),
    n=st.integers(0, 7),
    width=st.sampled_from([1, 3, 16, 17]),
    seed=seeds,
)
def test_like_the_textbook(dtype, before, after, n, width, seed):
    rng = np.random.default_rng(seed)
    index = rng.permutation(n)[: rng.integers(0, n + 1)]
    (x,) = draw(seed, dtype, (*before, n * width, *after))
    axis = len(before)
    part = ops.take_slices(x, index, axis, width)
    assert_same_bits(take_slices(x, index, axis, width), part)
    assert_same_bits(put_slices(part, index, axis, n, width), ops.put_slices(part, index, axis, n, width))


def test_views_and_lists():
    (x,) = draw(0, np.float64, (6, 8))
    assert_same_bits(take_slices(x.T[::2], [1, 0], 0, 2), ops.take_slices(x.T[::2], [1, 0], 0, 2))
    assert_same_bits(put_slices(x.T[::2], [2, 0], 1, 3, 3), ops.put_slices(x.T[::2], [2, 0], 1, 3, 3))


def test_results_are_copies():
    x = np.ones((4, 2000))
    take_slices(x, [0, 1, 2, 3], 0)[:] = 2
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: take_slices(np.ones((4, 6)), [3], 1, 2), r"index must lie in 0 … 2, got \[3\]"),
        (lambda: take_slices(np.ones((4, 6)), [0, -1], 1, 2), r"index must lie in 0 … 2, got \[0, -1\]"),
        (lambda: put_slices(np.ones((4, 2)), [7], 1, 3, 2), r"index must lie in 0 … 2, got \[7\]"),
        (lambda: put_slices(np.ones((4, 6)), [0, 1], 1, 3, 2), "part must have 2 slices of 2 entries along axis 1"),
        (lambda: take_slices(np.ones((4, 6), int), [0], 1, 2), "x must be float32 or float64"),
        (lambda: put_slices(np.ones((4, 2), complex), [0], 1, 3, 2), "part must be float32 or float64"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
