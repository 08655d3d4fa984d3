"""Residual connection against the textbook."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import assert_equal_to_textbook, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize("shape", [(2, 3, 130), (1,), (0, 4)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_textbook(place, shape, dropout):
    x, y, dout = normal(shape, shape, shape)
    assert_equal_to_textbook("residual", (x, y), dout, dropout=dropout, seed=5)
    assert_equal_to_textbook("residual", (x, y), dout, dropout=dropout, rng=None)


def test_views_and_the_gradient_itself(place):
    x, y = normal((9, 4), (4, 9))
    given = to_device(x)[2:].T, to_device(y)[:, 2:]
    out, cache = cuda.residual_forward(*given, 0.5, np.random.default_rng(1))
    same, _ = cuda.residual_forward(to_device(x[2:].T), to_device(y[:, 2:]), 0.5, np.random.default_rng(1))
    assert np.array_equal(to_host(out), to_host(same))
    assert cuda.residual_backward(out, cache)[0] is out


def test_bad_arguments(place):
    x, y = map(to_device, normal((2, 3), (3,)))
    with pytest.raises(ValueError, match=r"y must have the shape of x, \(2, 3\), got \(3,\)"):
        cuda.residual_forward(x, y)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got 1.0"):
        cuda.residual_forward(x, x, 1.0)
