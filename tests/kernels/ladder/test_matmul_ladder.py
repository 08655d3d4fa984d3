"""Every rung of the matmul ladder is the same product."""

import numpy as np
import pytest

from tinyprune.kernels.cpu.simd import VECTOR_BYTES
from tinyprune.kernels.ladder.matmul import COLUMNS, DEPTH, ROWS, RUNGS

WIDTH = 2 * VECTOR_BYTES // 8  # of a tile in float64
SMALL = [(1, 1, 1), (ROWS, 3, WIDTH), (2 * ROWS + 1, 7, 2 * WIDTH + 3), (ROWS - 1, 5, 40), (ROWS, 4, WIDTH - 1)]
EMPTY = [(0, 3, 4), (3, 0, 4), (ROWS, 0, WIDTH), (3, 4, 0)]
LARGE = [(2 * ROWS + 5, 2 * DEPTH + 9, COLUMNS + WIDTH + 1), (ROWS, DEPTH, COLUMNS), (70, 30, 2 * COLUMNS + 30)]

FIRST = next(iter(RUNGS))  # takes long
CASES = [(rung, s) for rung in RUNGS for s in (*SMALL, *EMPTY, *LARGE) if rung != FIRST or s not in LARGE]
each_rung = pytest.mark.parametrize("rung", RUNGS)


def assert_product(rung, a, b, tolerance):
    expected = a.astype(float) @ b.astype(float)
    out = RUNGS[rung](a, b)
    assert out.dtype == a.dtype and out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance * (1 + np.sqrt(a.shape[1])))


@pytest.mark.parametrize(("rung", "shape"), CASES)
def test_same_as_numpy(rung, shape, rng):
    M, K, N = shape
    assert_product(rung, rng.standard_normal((M, K)), rng.standard_normal((K, N)), 1e-13)


@each_rung
def test_views_in_single_precision(rung, rng):
    a, b = rng.standard_normal((31, ROWS + 2), np.float32), rng.standard_normal((4 * WIDTH + 1, 62), np.float32)
    assert_product(rung, a.T, b[:, ::2].T, 1e-6)


@each_rung
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), r"a and b must be \(M, K\) and \(K, N\), got \(2, 3\) and \(2, 3\)"),
        (np.ones(3), np.ones((3, 2)), r"a and b must be .*, got \(3,\)"),
        (np.ones((2, 3)), np.ones((3, 2), np.float32), "b must have the dtype of a, float64, got float32"),
        (np.ones((2, 3), int), np.ones((3, 2), int), "a must be float32 or float64"),
    ],
)
def test_bad_arguments(rung, a, b, message):
    with pytest.raises(ValueError, match=message):
        RUNGS[rung](a, b)
