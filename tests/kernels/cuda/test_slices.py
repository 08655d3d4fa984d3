"""Slices against the textbook."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(
    ("shape", "index", "axis", "width"),
    [
        ((2, 12, 3), [2, 0], 1, 4),
        ((70, 24), [1, 5, 0], 1, 4),
        ((7,), (3,), 0, 1),
        ((6, 5, 11), [1, 0], 0, 3),
        ((4, 6), [], 1, 2),
        ((0, 6), [2], 1, 2),
    ],
)
def test_equals_textbook(place, shape, index, axis, width):
    (x,) = normal(shape)
    n = shape[axis] // width
    part = ops.take_slices(x, index, axis, width)
    on_device = to_device(x)
    assert np.array_equal(to_host(cuda.take_slices(on_device, index, axis, width)), part)
    whole = ops.put_slices(part, index, axis, n, width)
    assert np.array_equal(to_host(cuda.put_slices(to_device(part), index, axis, n, width)), whole)
    assert np.array_equal(to_host(on_device), x)


def test_views_and_numbers_of_numpy(place):
    (x,) = normal((6, 5))
    index = np.array([2, 0])
    assert np.array_equal(to_host(cuda.take_slices(to_device(x).T, index, 1, 2)), ops.take_slices(x.T, index, 1, 2))
    got = cuda.put_slices(to_device(x)[:2, 1:], index, 0, 3)
    assert np.array_equal(to_host(got), ops.put_slices(x[:2, 1:], index, 0, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cuda.take_slices(x, [3], 1, 2), r"index must lie in 0 … 2, got \[3\]"),
        (lambda x: cuda.take_slices(x, [0, -1], 1, 2), r"index must lie in 0 … 2, got \[0, -1\]"),
        (lambda x: cuda.put_slices(x, [0, 7, 1], 1, 3, 2), r"index must lie in 0 … 2, got \[0, 7, 1\]"),
        (lambda x: cuda.take_slices(x, [0], 1, 4), "x must have whole slices of 4 entries along axis 1"),
        (lambda x: cuda.put_slices(x, [0, 1], 1, 3, 2), "part must have 2 slices of 2 entries along axis 1"),
        (lambda x: cuda.take_slices(to_host(x), [0], 1), "x must be in the GPU's memory, got ndarray"),
    ],
)
def test_bad_arguments(place, call, message):
    with pytest.raises(ValueError, match=message):
        call(to_device(np.ones((4, 6), np.float32)))
