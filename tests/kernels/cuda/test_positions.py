"""Positions against the textbook."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import assert_equal_to_textbook, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(
    ("B", "T", "D", "rows"), [(2, 3, 5, 3), (7, 5, 67, 6), (1, 1, 1, 4), (0, 2, 3, 2), (2, 0, 3, 2), (2, 1, 0, 2)]
)
def test_equals_textbook(place, B, T, D, rows):
    x, P, dout = normal((B, T, D), (rows, D), (B, T, D))
    assert_equal_to_textbook("positions", (x, P), dout)


def test_the_gradient_itself_and_views(place):
    x, P = normal((5, 3, 2), (5, 4))
    given = to_device(x).T, to_device(P).T
    out, cache = cuda.positions_forward(given[0], given[1])
    assert np.array_equal(to_host(out), x.T + P.T[:3])
    assert cuda.positions_backward(given[0], cache)[0] is given[0]


def test_bad_arguments(place):
    x, P = map(to_device, normal((2, 4, 5), (3, 5)))
    with pytest.raises(ValueError, match=r"P must be \(rows, 5\) with rows ≥ 4 to match x \(2, 4, 5\), got \(3, 5\)"):
        cuda.positions_forward(x, P)
    out, cache = cuda.positions_forward(x[:, :2], P)
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 2, 5\) like the output, got \(2, 4, 5\)"):
        cuda.positions_backward(x, cache)
