"""Add against the textbook."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 50), (257,)])
def test_equals_numpy(place, shape):
    a, b = normal(shape, shape)
    assert_close(cuda.add(to_device(a), to_device(b)), a.astype(float) + b)


def test_views(place):
    a, b = normal((5, 4), (7, 5))
    assert_close(cuda.add(to_device(a).T, to_device(b)[3:]), a.T.astype(float) + b[3:])


def test_bad_arguments(place):
    a, b = map(to_device, normal((2, 3), (3, 2)))
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2, 3\), got \(3, 2\)"):
        cuda.add(a, b)
    with pytest.raises(ValueError, match="b must be in the GPU's memory, got ndarray; to_device copies it there"):
        cuda.add(a, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="b must be float32 for the cuda backend, got int32"):
        cuda.add(a, to_device(np.zeros((2, 3), np.int32)))
