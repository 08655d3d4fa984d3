"""Every rung of the attention ladder is the textbook's attention."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.ladder import matmul
from tinyprune.kernels.ladder.attention import CHUNK, RUNGS

# Each compiled rung takes seconds to compile, and is kept nowhere.
FIRST, SECOND, *HIGHER = RUNGS
each_rung = pytest.mark.parametrize(
    "rung", [FIRST, SECOND, *(pytest.param(rung, marks=pytest.mark.slow) for rung in HIGHER)]
)


def example(rng, B=2, H=3, T=7, M=5, Dh=4, N=6, dtype=float):
    """q, k, v, r, u, w, pk, pv."""
    S = M + T
    shapes = [(B, T, H, Dh), (B, S, H, Dh), (B, S, H, Dh), (S, H, Dh), (H, Dh), (H, Dh), (H, N, Dh), (H, N, Dh)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def assert_textbook(rung, x, span, tolerance):
    expected, _ = ops.attention_forward(*(a.astype(float) for a in x), span=span)
    out = RUNGS[rung](*x, span)
    assert out.dtype == x[0].dtype
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


@each_rung
@pytest.mark.parametrize(
    ("shape", "span"),
    [
        ({}, 5),  # the same-length mask
        ({}, 12),  # plain causal
        ({}, 0),
        ({"B": 1, "H": 1, "T": 1, "M": 0, "Dh": 1, "N": 1}, 0),
        ({"M": 0, "N": CHUNK}, 3),
        ({"T": CHUNK + 3, "M": 2 * CHUNK, "N": CHUNK + 1, "Dh": 17}, 2 * CHUNK),
        ({"H": 0}, 5),
        ({"B": 0}, 5),
    ],
)
def test_same_as_the_textbook(rung, shape, span, rng):
    assert_textbook(rung, example(rng, **shape), span, 1e-12)


@pytest.mark.slow
@each_rung
def test_single_precision(rung, rng):
    assert_textbook(rung, example(rng, T=CHUNK + 3, M=20, N=31, Dh=17, dtype=np.float32), 20, 3e-5)


@each_rung
def test_scores_far_apart_in_views(rung, rng):
    x = [np.asfortranarray(a) for a in example(rng, T=CHUNK, N=2 * CHUNK)]
    x[0] *= 100
    assert_textbook(rung, x, 5, 1e-9)


@each_rung
def test_bad_arguments(rung, rng):
    x = example(rng)
    with pytest.raises(ValueError, match=r"v must have shape \(2, 12, 3, 4\)"):
        RUNGS[rung](x[0], x[1], x[2][:, 1:], *x[3:], 5)
    with pytest.raises(ValueError, match="w must have the dtype of q, float64, got float32"):
        RUNGS[rung](*x[:5], x[5].astype(np.float32), *x[6:], 5)
    with pytest.raises(ValueError, match="span must be at least 0"):
        RUNGS[rung](*x, -1)


def test_each_rung_says_what_it_changes():
    assert all(len(rung.__doc__.splitlines()) > 2 for rung in (*RUNGS.values(), *matmul.RUNGS.values()))
