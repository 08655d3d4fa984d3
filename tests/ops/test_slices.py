"""Slices taken out and put back, against NumPy's indexing written out."""

import numpy as np
import pytest

from tinyprune.ops import put_slices, take_slices


def test_slices_are_taken_in_the_order_given(rng):
    x = rng.standard_normal((2, 12, 3))
    part = take_slices(x, [2, 0], 1, width=4)
    np.testing.assert_array_equal(part, np.concatenate([x[:, 8:12], x[:, 0:4]], axis=1))
    np.testing.assert_array_equal(take_slices(x, [1], 0), x[1:])
    assert take_slices(x, [], 1, 4).shape == (2, 0, 3)


def test_put_is_the_reverse_and_fills_up_with_zeros(rng):
    part = rng.standard_normal((2, 8, 3))
    x = put_slices(part, [2, 0], 1, 4, width=4)
    assert x.shape == (2, 16, 3)
    np.testing.assert_array_equal(x[:, 8:12], part[:, :4])
    np.testing.assert_array_equal(x[:, 0:4], part[:, 4:])
    assert not x[:, 4:8].any() and not x[:, 12:].any()
    assert not put_slices(np.ones((0, 3)), [], 0, 5).any()


def test_put_is_the_transpose_of_take(rng):
    """⟨take(x), y⟩ = ⟨x, put(y)⟩, which is what makes it the gradient."""
    x, y = rng.standard_normal((3, 10)), rng.standard_normal((3, 4))
    assert (take_slices(x, [4, 1], 1, 2) * y).sum() == pytest.approx((x * put_slices(y, [4, 1], 1, 5, 2)).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_results_are_new_and_of_the_same_dtype(dtype):
    x = np.ones((4, 2), dtype)
    part = take_slices(x, [0, 1, 2, 3], 0)
    part[:] = 2
    assert part.dtype == put_slices(part, [0, 1, 2, 3], 0, 4).dtype == dtype
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: take_slices(np.ones((4, 6)), [3], 1, 2), r"index must lie in 0 … 2, got \[3\]"),
        (lambda: take_slices(np.ones((4, 6)), [0, -1], 1, 2), r"index must lie in 0 … 2, got \[0, -1\]"),
        (lambda: put_slices(np.ones((4, 2)), [7], 1, 3, 2), r"index must lie in 0 … 2, got \[7\]"),
        (lambda: take_slices(np.ones((4, 6)), [0], 1, 4), r"x must have whole slices of 4 entries along axis 1"),
        (lambda: take_slices(np.ones((4, 6)), [0], 2), r"x must have whole slices of 1 entries along axis 2"),
        (lambda: put_slices(np.ones((4, 6)), [0, 1], 1, 3, 2), "part must have 2 slices of 2 entries along axis 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
