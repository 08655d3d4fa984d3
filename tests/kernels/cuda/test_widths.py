"""Rows made wider and narrower."""

import numpy as np
import pytest

from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.widths import narrow, wide

from .compare import normal


@pytest.mark.parametrize("shape", [(3, 2, 5), (300, 3), (1,), (0, 3), (2, 0, 7)])
def test_wider_with_zeros_and_back(place, shape):
    (x,) = normal(shape)
    wider = wide(to_device(x))
    assert wider.contiguous and wider.shape == (*shape[:-1], -(-shape[-1] // 4) * 4)
    np.testing.assert_array_equal(to_host(wider)[..., : shape[-1]], x)
    assert not to_host(wider)[..., shape[-1] :].any()
    np.testing.assert_array_equal(to_host(narrow(wider, shape[-1])), x)


def test_no_copy_where_nothing_is_to_do(place):
    (x,) = normal((3, 8))
    x = to_device(x)
    assert wide(x) is x and narrow(x, 8) is x
    assert wide(x.T[:, :2]).contiguous
