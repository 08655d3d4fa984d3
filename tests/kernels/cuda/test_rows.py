"""Rows taken, put and added, against NumPy."""

import numpy as np
import pytest

from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.dropout import mask_of
from tinyprune.kernels.cuda.rows import add_rows, put_rows, taken_rows
from tinyprune.ops.dropout import keep_mask

from .compare import normal

PLACES, WORDS = np.array([4, 0, 2]), np.array([7, 3, 5])


@pytest.mark.parametrize("D", [1, 5, 130])
@pytest.mark.parametrize("keys", [(1, 2), (11, 5)])
def test_equals_numpy(place, D, keys):
    x, rows = normal((6, D), (3, D))
    factor = (2.5 / 0.6 * keep_mask((10,), 0.4, keys)[WORDS])[:, None].astype(np.float32)
    mask = mask_of(0.4, keys, 2.5)
    taken = taken_rows(to_device(x), PLACES, WORDS, mask)
    np.testing.assert_allclose(to_host(taken), x[PLACES] * factor, rtol=1e-6)
    put, added = to_device(x), to_device(x)
    put_rows(to_device(rows), PLACES, WORDS, mask, put)
    add_rows(to_device(rows), PLACES, added)
    expected = x.copy()
    expected[PLACES] = rows * factor
    np.testing.assert_allclose(to_host(put), expected, rtol=1e-6)
    expected = x.copy()
    expected[PLACES] += rows
    np.testing.assert_allclose(to_host(added), expected, rtol=1e-6)


def test_no_rows(place):
    x, rows = normal((6, 3), (0, 3))
    none, out = np.zeros(0, np.int64), to_device(x)
    put_rows(to_device(rows), none, none, mask_of(0, (0, 0)), out)
    add_rows(to_device(rows), none, out)
    assert np.array_equal(to_host(out), x)
    assert taken_rows(out, none, none, mask_of(0, (0, 0))).shape == (0, 3)
