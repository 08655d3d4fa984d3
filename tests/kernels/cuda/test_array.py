"""Arrays in the GPU's memory: the same views as NumPy's, to the last entry."""

import numpy as np
import pytest

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.copies import copied, zeros

from .compare import normal


def test_there_and_back(place):
    for shape in ((), (1,), (0,), (3, 0, 2), (2, 3, 5), (130,)):
        (x,) = normal(shape)
        there = to_device(x)
        assert there.shape == shape and there.ndim == x.ndim and there.size == x.size and there.dtype == x.dtype
        assert np.array_equal(to_host(there), x) and to_host(there).shape == shape
    numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.array_equal(to_host(to_device(numbers)), numbers)
    assert to_device(there) is there and to_host(x) is x
    assert float(to_device(np.float32([[2.5]]))) == 2.5


VIEWS = [
    lambda x: x[1],
    lambda x: x[-1],
    lambda x: x[1:],
    lambda x: x[2:1],
    lambda x: x[:, -2:],
    lambda x: x[:, 1, 2:4],
    lambda x: x[:, :, 0],
    lambda x: x[1, 2, 3],
    lambda x: x.T,
    lambda x: x[0].T[1:3],
    lambda x: x[1:2].reshape(-1),
    lambda x: x.reshape(3, -1, 5)[:, 1:],
    lambda x: x.reshape((15, 4)),
    lambda x: x.real,
]


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_numpys(place, view):
    (x,) = normal((3, 4, 5))
    expected, got = view(x), view(to_device(x))
    assert got.shape == expected.shape and got.contiguous == expected.flags.c_contiguous
    assert np.array_equal(to_host(got), expected)
    assert np.array_equal(to_host(copied(got)), expected) and copied(got).contiguous


def test_a_view_shares_its_memory(place):
    x = zeros((2, 3))
    x[1].lease.write(x[1].first, np.float32([1, 2, 3]))
    assert np.array_equal(to_host(x), [[0, 0, 0], [1, 2, 3]])


def test_refusals(place):
    x = to_device(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="computes in float32, got an array of float64"):
        to_device(np.zeros(2))
    with pytest.raises(ValueError, match=r"cannot reshape \(2, 3\) into \(4,\)"):
        x.reshape(4)
    with pytest.raises(ValueError, match=r"cannot reshape a view with strides \(1, 3\); copy it first"):
        x.T.reshape(6)
    with pytest.raises(UsageError, match="an array of 2,147,483,648 numbers is more than a kernel can count"):
        empty((2**20, 2**11))
    for index in (2, -3, (0, 3), (0, 0, 0)):
        with pytest.raises(IndexError):
            x[index]
    with pytest.raises(IndexError, match="step 1"):
        x[::2]
    with pytest.raises(TypeError, match="to_host copies it"):
        np.asarray(x)
    with pytest.raises(TypeError):
        x + x
    assert len(x) == 2 and repr(x) == "DeviceArray(float32, (2, 3))" and empty(3).shape == (3,)
