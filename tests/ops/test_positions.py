"""Positions: a row of the table for every place, and what is not read gets no gradient."""

import numpy as np
import pytest

from tinyprune.ops import positions_backward, positions_forward


@pytest.mark.parametrize("rows", [4, 7])
def test_each_place_gets_its_row_and_the_rows_their_sums(rows, rng):
    x, dout, P = rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 4, 5)), rng.standard_normal((rows, 5))
    out, cache = positions_forward(x, P)
    dx, dP = positions_backward(dout, cache)
    assert dx is dout and dP.shape == P.shape
    for b, t, d in np.ndindex(2, 4, 5):
        assert out[b, t, d] == x[b, t, d] + P[t, d]
        assert dP[t, d] == dout[0, t, d] + dout[1, t, d]
    assert not dP[4:].any()


@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (4,), (1, 4, 5)])
def test_a_table_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"P must be \(rows, 5\) with rows ≥ 4 to match x \(2, 4, 5\), got"):
        positions_forward(np.zeros((2, 4, 5)), np.zeros(shape))


def test_x_without_a_batch():
    with pytest.raises(ValueError, match=r"x must be \(B, T, D\), got \(4, 5\)"):
        positions_forward(np.zeros((4, 5)), np.zeros((4, 5)))
