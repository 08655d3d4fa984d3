"""Join: all entries in a row, types, views, bad arguments."""

import numpy as np
import pytest

from tinyprune.ops import join


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_one_after_the_other_and_a_new_array(dtype, rng):
    a, b, c = (rng.standard_normal(n).astype(dtype) for n in (3, 0, 10))
    out = join([a, b, c[::2]])
    assert out.dtype == dtype
    assert out.tolist() == a.tolist() + c.tolist()[::2]
    alone = join((a,))
    np.testing.assert_array_equal(alone, a)
    assert not np.shares_memory(alone, a)


def test_bad_arguments():
    with pytest.raises(ValueError, match="arrays must be at least one, got none"):
        join([])
    with pytest.raises(ValueError, match=r"arrays\[1\] must be 1-D, got \(2, 3\)"):
        join([np.ones(3), np.ones((2, 3))])
