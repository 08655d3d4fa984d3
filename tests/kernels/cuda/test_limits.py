"""The kernels that measure what the GPU can do compute what they say."""

import numpy as np
import pytest

from tinyprune.kernels.cuda import limits
from tinyprune.kernels.cuda.array import empty, to_device, to_host

from .compare import normal


@pytest.mark.parametrize("size", [4, 12, 4 * limits.THREADS + 8])
def test_copy(place, size):
    (x,) = normal((size,))
    out = empty(size)
    limits.copy(to_device(x), out)
    assert np.array_equal(to_host(out), x)


def test_multiply_and_add(place):
    """From 0 … 7, x = x / 2 + 1 comes nearer to 2 by half in every step."""
    unit = limits.CHAINS * limits.UNROLLED
    out = empty(2 * limits.THREADS)
    for steps, distance in ((unit, 0.5**limits.UNROLLED), (2 * unit, 0.5 ** (2 * limits.UNROLLED))):
        limits.multiply_and_add(steps, out)
        expected = sum(2 + distance * (x - 2) for x in range(limits.CHAINS))
        np.testing.assert_allclose(to_host(out), np.full(out.size, expected), rtol=2e-6)
