"""Add: views, types, and no silent broadcasting."""

import numpy as np
import pytest

from tinyprune.ops import add


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_views_with_gaps_in_memory_are_added_entry_by_entry(dtype, rng):
    a = rng.standard_normal((2, 7, 5)).astype(dtype)[:, 3:]
    b = rng.standard_normal((5, 4, 2)).astype(dtype).T
    before = a.copy(), b.copy()
    out = add(a, b)
    assert out.dtype == dtype and not np.shares_memory(out, a) and not np.shares_memory(out, b)
    for index in np.ndindex(2, 4, 5):
        assert out[index] == a[index] + b[index]
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


def test_nothing_is_broadcast():
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2, 3\), got \(3,\)"):
        add(np.ones((2, 3)), np.ones(3))
