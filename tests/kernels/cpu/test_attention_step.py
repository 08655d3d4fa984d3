"""One token at a time compiled: with and without its parts, closed heads, bad numbers, weights that change."""

from functools import partial

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.attention_step import AttentionStep

from ..compare import assert_close, assert_same_bits, make_step
from ..compare import step_example as example

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that meet after every token would wait for one another where tests run side by side."""
    with get_backend("numba").threads(1):
        yield


make = partial(make_step, AttentionStep)


def text(dtype, D=13, tokens=11):
    return np.random.default_rng(4).standard_normal((tokens, D)).astype(dtype)


def kernel(x, p):
    step = make(**p)
    return np.array([step(row) for row in x])


def in_float64(p):
    return {name: value.astype(float) if isinstance(value, np.ndarray) else value for name, value in p.items()}


def textbook(x, p):
    step = make_step(ops.AttentionStep, **in_float64(p))
    return np.array([step(row) for row in x.astype(float)])


@each_dtype
@pytest.mark.parametrize(
    "parts",
    [
        {"gated": False},
        {"N": 0, "relative": False, "gated": False},
        {"D": 64, "H": 2, "Dh": 64, "N": 128, "C": 96},  # whole vectors, and more than one panel
        {"H": 0},
        {"Dh": 64, "relative": False, "N": 0, "biased": True, "rope_base": 100.0},
        *({"relative": False, "N": 0, "biased": True, "only": only} for only in ("", "bq", "bk", "bv")),
    ],
    ids=str,
)
def test_with_and_without_each_part(dtype, parts):
    only = parts.get("only")
    p = example(dtype, **{name: value for name, value in parts.items() if name != "only"})
    p |= {} if only is None else {name: None for name in ("bq", "bk", "bv", "bo") if name != only}
    x = text(dtype, len(p["Wq"]), 2 * p["C"] + 3)
    assert_close(kernel(x, p), textbook(x, p), dtype)


@pytest.mark.parametrize("kind", [ops.AttentionStep, AttentionStep])
def test_only_distances_count_however_late_the_position(kind):
    """In float32 an angle of a million would be off by a thirtieth. The text begins in the middle of the buffers."""
    p, x = example(np.float32, Dh=6, relative=False, N=0, biased=True, rope_base=100.0), text(np.float32)
    early, late = make_step(kind, **p), make_step(kind, **p)
    late.read = 1_000_001
    for i, row in enumerate(x):
        expected, got = early(row), late(row)
        if i >= p["C"]:  # until then, places that no token has taken are seen
            assert_close(got, expected, np.float32)


def test_closed_heads_are_left_out():
    p, x = example(np.float32, H=5), text(np.float32)
    p["gate"][[0, 3]] = 0
    expected = textbook(x, p)
    for name in ("u", "w", "pk", "pv"):
        p[name][[0, 3]] = np.nan
    assert_close(kernel(x, p), expected, np.float32)
    assert len(make(**p).memory) == 3


def test_forgets_when_told_to():
    p, x = example(np.float64), text(np.float64)
    step = make(**p)
    for row in (*x, np.full(13, np.nan)):
        step(row)
    step.clear()
    assert_same_bits(np.array([step(row) for row in x]), kernel(x, p))


@each_dtype
@pytest.mark.parametrize("n", [0, 1, 3, 4, 6, 9])
def test_a_text_taken_over(dtype, n):
    """Into 4 places, in place of what was read before, with one head closed."""
    p, x = example(dtype), text(dtype)
    p["gate"][1] = 0
    keys, values = np.random.default_rng(5).standard_normal((2, n, 3, 5)).astype(dtype)
    got, expected = make(**p), make_step(ops.AttentionStep, **in_float64(p))
    got(np.full(13, np.inf, dtype))
    got.fill(keys, values)
    expected.fill(keys.astype(float), values.astype(float))
    for row in x:
        assert_close(got(row), expected(row.astype(float)), dtype)


@pytest.mark.parametrize("kind", [ops.AttentionStep, AttentionStep])
def test_a_text_of_other_heads_is_refused(kind):
    step = make_step(kind, **example(np.float32))
    keys = np.zeros((2, 3, 5), np.float32)
    for wrong, name in [((keys[:, :1], keys), "keys"), ((keys, keys[:1]), "values"), ((keys, keys[..., :4]), "values")]:
        with pytest.raises(ValueError, match=rf"{name} must have shape \((n|2), 3, 5\)"):
            step.fill(*wrong)
    assert step.read == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_is_seen_until_its_token_is_forgotten(bad):
    p, x = example(np.float32, C=4), text(np.float32)
    clean = kernel(x, p)
    x[2, 12] = bad
    y = kernel(x, p)
    assert np.isnan(y[2:6]).all()
    assert_same_bits(np.delete(y, range(2, 6), 0), np.delete(clean, range(2, 6), 0))


def test_scores_far_apart():
    p, x = example(np.float32), text(np.float32)
    p["Wq"] *= 1000
    p["pk"] *= 100
    y = kernel(x, p)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, textbook(x, p), atol=1e-3)  # scores of 1000 in float32 are exact to 1e-4


def test_weights_are_copied():
    p, x = example(np.float64), text(np.float64)
    expected, step = kernel(x, p), make(**p)
    for value in p.values():
        if isinstance(value, np.ndarray):
            value[:] = 0
    assert_same_bits(np.array([step(row) for row in x]), expected)


def test_a_bad_token_is_not_read():
    p, x = example(np.float64), text(np.float64)
    step = make(**p)
    y = [step(row) for row in x[:5]]
    for bad in (np.ones(12), np.ones((1, 13)), np.ones(13, np.float32)):
        with pytest.raises(ValueError, match=r"x must be float64 of shape \(13,\), got"):
            step(bad)
    y += [step(row) for row in x[5:]]
    assert_same_bits(np.array(y), kernel(x, p))
