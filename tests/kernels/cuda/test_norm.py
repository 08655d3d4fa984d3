"""Squared norms against the textbook, in float64: sizes around a block's, views, overflow, several arrays at once."""

import math

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device
from tinyprune.kernels.cuda.norm import EACH, THREADS

from .compare import normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (3, 70), (THREADS + 1,), (EACH,), (2 * EACH + 3,), (0, 4)], ids=lambda shape: str(shape)
)
def test_equals_textbook(place, shape):
    (x,) = normal(shape)
    got = cuda.squared_norm(to_device(x))
    assert isinstance(got, float)
    assert got == pytest.approx(ops.squared_norm(x), rel=1e-13)


def test_squares_that_are_too_large_for_float32(place):
    assert cuda.squared_norm(to_device(np.full(2, 1e30, np.float32))) == 2 * float(np.float32(1e30)) ** 2


def test_several_arrays_and_views(place):
    x, y, z = normal((9, 5), (EACH + 1,), (3,))
    arrays = [x[:, 1:4], y, x.T, z[:0], z[1:]]
    on_device = to_device(x)
    given = [on_device[:, 1:4], to_device(y), on_device.T, to_device(z)[:0], to_device(z)[1:]]
    assert cuda.squared_norms(given) == pytest.approx(ops.squared_norms(arrays), rel=1e-13)
    assert cuda.squared_norms(given) == [cuda.squared_norm(one) for one in given]
    assert cuda.squared_norms([]) == [] and cuda.squared_norms([given[3]]) == [0.0]


def test_nan_and_inf(place):
    one = np.ones(300, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        one[270] = bad
        good, got = cuda.squared_norms([to_device(one[:270]), to_device(one)])
        assert good == 270 and (math.isnan(got) if math.isnan(bad) else got == math.inf)


def test_bad_arguments(place):
    with pytest.raises(ValueError, match=r"arrays\[1\] must be in the GPU's memory, got ndarray"):
        cuda.squared_norms([to_device(np.ones(3, np.float32)), np.ones(3)])
    with pytest.raises(ValueError, match="x must be float32 for the cuda backend, got int32"):
        cuda.squared_norm(to_device(np.ones(3, np.int32)))
