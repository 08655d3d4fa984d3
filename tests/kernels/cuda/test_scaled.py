"""An array times a number in either memory."""

import numpy as np
import pytest

from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.scaled import THREADS, scaled

from .compare import assert_close, normal


@pytest.mark.parametrize("shape", [(3, 4), (), (THREADS + 1,), (0, 2)])
def test_equals_numpy(place, shape):
    (x,) = map(np.asarray, normal(shape))
    for factor in (0.3, np.float64(2), to_device(np.array(-1.5, np.float32))):
        assert_close(scaled(to_device(x), factor), np.asarray(x * np.float64(to_host(factor))))


def test_views_and_another_shape(place):
    (x,) = normal((3, 4))
    assert np.array_equal(to_host(scaled(to_device(x).T[1:], 2.0)), 2 * x.T[1:])
    with pytest.raises(ValueError, match=r"scale must have shape \(\) like the output, got \(3,\)"):
        scaled(to_device(x), to_device(x)[:, 0], "scale")
