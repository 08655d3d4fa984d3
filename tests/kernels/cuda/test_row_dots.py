"""Row products against NumPy."""

import numpy as np
import pytest

from tinyprune.kernels.cuda import row_dots
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal


def check(module, shape=(3, 7, 2, 11)):
    """More rows than a block has lines, more numbers than lanes; y of the shape of x, and the same for all rows."""
    x, y, same = normal(shape, shape, shape[-2:])
    for other in (y, same):
        expected = 0.5 * (x.astype(np.float64) * other).sum(-1)
        assert_close(module.row_dots(to_device(x), to_device(other), 0.5), expected)


@pytest.mark.parametrize("shape", [(3, 7, 2, 11), (1, 1, 1), (16, 3, 8), (0, 2, 4), (5, 0, 4)])
def test_equals_numpy(place, both_orders, shape):
    check(row_dots, shape)
