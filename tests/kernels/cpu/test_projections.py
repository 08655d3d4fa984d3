"""Projections compiled: against the textbook over shapes; no heads, no rows, threads, bad arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.projections import projections_backward, projections_forward

from .compare import (
    TOLERANCE,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    seeds,
    widths,
)


def example(seed, dtype, B, S, T, D, O):
    return draw(seed, dtype, (B, S, D), (D, O), (D, O), (D, O), (B, T, O), (B, S, O), (B, S, O))


def there_and_back(forward, backward, n, Wq, Wk, Wv, dq, dk, dv):
    made, cache = forward(n, Wq, Wk, Wv, dq.shape[1])
    return *made, *backward(dq, dk, dv, cache)


def kernel(*arrays):
    return there_and_back(projections_forward, projections_backward, *arrays)


def textbook(*arrays):
    return there_and_back(ops.projections_forward, ops.projections_backward, *arrays)


def compare(*arrays):
    dtype = arrays[0].dtype.type
    for got, expected in zip(kernel(*arrays), textbook(*map(in_float64, arrays)), strict=True):
        assert got.dtype == dtype and got.shape == expected.shape
        assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@each_dtype
@few
@given(B=st.integers(0, 3), M=st.sampled_from([0, 1, 5, 31]), T=widths, D=widths, O=widths, seed=seeds)
def test_like_the_textbook(dtype, B, M, T, D, O, seed):
    compare(*example(seed, dtype, B, M + T, T, D, O))


@pytest.mark.parametrize(("S", "T", "O"), [(5, 0, 4), (5, 3, 0), (0, 0, 4)])
def test_no_queries_no_heads_no_positions(S, T, O):
    compare(*example(1, np.float64, 2, S, T, 3, O))


def test_threads_do_not_matter_and_nothing_is_modified():
    arrays = example(2, np.float32, 16, 64, 37, 61, 67)
    copies = [a.copy() for a in arrays]
    assert_threads_do_not_matter(lambda: kernel(*arrays))
    assert_same_bits(tuple(arrays), tuple(copies))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": np.ones((5, 3))}, r"n must be \(B, S, D\), got \(5, 3\)"),
        ({"Wq": np.ones((4, 6))}, r"Wq must have shape \(3, H·Dh\) to match n \(2, 5, 3\), got \(4, 6\)"),
        ({"Wk": np.ones((3, 5))}, r"Wk must have the shape of Wq, \(3, 6\), got \(3, 5\)"),
        ({"Wv": np.ones((3, 6), np.float32)}, "Wv must have the dtype of n, float64, got float32"),
        ({"T": 6}, "T must be at least 0 and at most 5"),
        ({"T": -1}, "T must be at least 0 and at most 5"),
    ],
)
def test_bad_arguments(change, message):
    good = {"n": np.ones((2, 5, 3)), "Wq": np.ones((3, 6)), "Wk": np.ones((3, 6)), "Wv": np.ones((3, 6)), "T": 4}
    with pytest.raises(ValueError, match=message):
        projections_forward(**(good | change))


def test_bad_gradients():
    _, cache = projections_forward(np.ones((2, 5, 3)), *[np.ones((3, 6))] * 3, 4)
    good = [np.ones((2, T, 6)) for T in (4, 5, 5)]
    for i, name in enumerate(("dq", "dk", "dv")):
        with pytest.raises(ValueError, match=f"{name} must be float64"):
            projections_backward(*good[:i], np.ones((2, 6, 6)), *good[i + 1 :], cache)
