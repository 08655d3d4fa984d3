"""Projections against the textbook: shapes, no heads, no rows, bad arguments."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(
    ("B", "S", "T", "D", "O"),
    [
        (2, 7, 5, 12, 8),
        (3, 5, 3, 7, 9),
        (2, 4, 4, 5, 3),
        (1, 1, 1, 1, 1),
        (2, 5, 0, 3, 4),
        (2, 5, 3, 3, 0),
        (0, 2, 1, 3, 4),
    ],
)
def test_equals_textbook(place, B, S, T, D, O):
    n, Wq, Wk, Wv, dq, dk, dv = given = normal((B, S, D), (D, O), (D, O), (D, O), (B, T, O), (B, S, O), (B, S, O))
    made, cache = cuda.projections_forward(*map(to_device, given[:4]), T)
    wide = [x.astype(np.float64) for x in given]
    expected, expected_cache = ops.projections_forward(*wide[:4], T)
    assert_close(made, expected)
    on_device = [to_device(x) for x in given[4:]]
    expected = ops.projections_backward(*wide[4:], expected_cache)
    for _ in range(2):  # nothing that is kept is changed
        assert_close(cuda.projections_backward(*on_device, cache), expected)
    assert_close(on_device, given[4:])
    assert_close(cache[:4], given[:4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": (5, 3)}, r"n must be \(B, S, D\), got \(5, 3\)"),
        ({"Wq": (4, 6)}, r"Wq must have shape \(3, H·Dh\) to match n \(2, 5, 3\), got \(4, 6\)"),
        ({"Wk": (3, 5)}, r"Wk must have the shape of Wq, \(3, 6\), got \(3, 5\)"),
        ({"T": 6}, "T must be at least 0 and at most 5"),
        ({"T": -1}, "T must be at least 0 and at most 5"),
    ],
)
def test_bad_arguments(place, change, message):
    good = {"n": (2, 5, 3), "Wq": (3, 6), "Wk": (3, 6), "Wv": (3, 6), "T": 4}
    given = {
        name: to_device(np.ones(value, np.float32)) if isinstance(value, tuple) else value
        for name, value in (good | change).items()
    }
    with pytest.raises(ValueError, match=message):
        cuda.projections_forward(**given)
    given["Wv"] = np.ones((3, 6))
    with pytest.raises(ValueError, match="Wv must be in the GPU's memory"):
        cuda.projections_forward(**given)


def test_bad_gradients(place):
    n, W = (to_device(x) for x in normal((2, 5, 3), (3, 6)))
    _, cache = cuda.projections_forward(n, W, W, W, 4)
    good = [to_device(x) for x in normal((2, 4, 6), (2, 5, 6), (2, 5, 6))]
    for i, name in enumerate(("dq", "dk", "dv")):
        with pytest.raises(ValueError, match=rf"{name} must have shape .* like the output, got \(2, 5, 3\)"):
            cuda.projections_backward(*good[:i], n, *good[i + 1 :], cache)
