"""Join against NumPy."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import normal

cuda = get_backend("cuda")


def test_equals_numpy(place):
    a, b, c, d = normal((3,), (0,), (5, 2), (300,))
    arrays = [to_device(a), to_device(b), to_device(c).T[1], to_device(d)[1:]]
    out = cuda.join(arrays)
    assert np.array_equal(to_host(out), np.concatenate([a, b, c[:, 1], d[1:]]))
    assert np.array_equal(to_host(cuda.join(arrays[:1])), a) and cuda.join(arrays[:1]).lease is not arrays[0].lease


def test_bad_arguments(place):
    with pytest.raises(ValueError, match="arrays must be at least one, got none"):
        cuda.join([])
    with pytest.raises(ValueError, match=r"arrays\[1\] must be 1-D, got \(2, 3\)"):
        cuda.join(list(map(to_device, normal((3,), (2, 3)))))
    with pytest.raises(ValueError, match=r"arrays\[0\] must be in the GPU's memory, got ndarray"):
        cuda.join([np.ones(3)])
