"""The fused attention kernel against the textbook, whole-array: every output, every gradient, ragged shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu import attention
from tinyprune.kernels.cpu.workspace import POOL

from .compare import assert_threads_do_not_matter

NAMES = ("out", "dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate")
BOUND = {np.float64: 1e-12, np.float32: 1e-5}


def arguments(rng, B, H, T, M, Dh, N, relative, gate, dtype):
    """Standard normal q, k, v, r, u, w, pk, pv (None where there are none), the gates and dout."""

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    S = M + T
    x = [normal(B, T, H, Dh), normal(B, S, H, Dh), normal(B, S, H, Dh)]
    x += [normal(S, H, Dh), normal(H, Dh), normal(H, Dh)] if relative else [None] * 3
    x += [normal(H, N, Dh), normal(H, N, Dh)] if N else [None] * 2
    x.append(None if gate is None else np.resize(np.array(gate, dtype), H))
    return x, normal(B, T, H, Dh)


def results(backend, x, dout, seed=None, **options):
    """Output and gradients, and the head outputs that the cache shows."""
    rng = None if seed is None else np.random.default_rng(seed)
    out, cache = backend.attention_forward(*x, rng=rng, **options)
    return dict(zip(NAMES, (out, *backend.attention_backward(dout, cache)), strict=True)) | {"o": cache.o}


def assert_equal_to_textbook(x, dout, **options):
    """Same shapes and dtypes, and every entry within the dtype's bound of what the textbook finds in float64."""
    got = results(attention, x, dout, **options)
    expected = results(ops, [None if a is None else a.astype(float) for a in x], dout.astype(float), **options)
    for name, reference in expected.items():
        if reference is None:
            assert got[name] is None, name
            continue
        assert got[name].shape == reference.shape, name
        assert got[name].dtype == dout.dtype, name
        if reference.size:
            error = np.abs(got[name] - reference).max() / max(1, np.abs(reference).max())
            assert error <= BOUND[dout.dtype.type], (name, error)


@given(
    B=st.integers(1, 3),
    H=st.sampled_from([1, 2, 3, 5]),
    T=st.integers(1, 70),
    M=st.integers(0, 70),
    Dh=st.sampled_from([1, 3, 7, 8, 13, 16, 32, 37]),
    N=st.sampled_from([0, 1, 5, 31, 64, 97]),
    relative=st.booleans(),
    span=st.sampled_from([None, "M", 0, 3, 40]),
    gate=st.sampled_from([None, (0.7, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 0.0), (0.0,)]),
    dropout=st.sampled_from([0.0, 0.3]),
    scale=st.sampled_from([1.0, 2.5]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_textbook(B, H, T, M, Dh, N, relative, span, gate, dropout, scale, dtype):
    M = 0 if M < 10 else M
    x, dout = arguments(np.random.default_rng(T), B, H, T, M, Dh, N, relative, gate, dtype)
    span = M if span == "M" else span
    assert_equal_to_textbook(x, dout, seed=1, span=span, dropout=dropout, scale=scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("T", "M", "N"), [(64, 300, 530), (130, 0, 300), (33, 257, 256)])
@pytest.mark.parametrize("same_length", [True, False])
def test_runs_of_keys_longer_than_a_chunk(T, M, N, same_length, dtype):
    x, dout = arguments(np.random.default_rng(3), 1, 2, T, M, 16, N, True, (0.5, 1.0), dtype)
    assert_equal_to_textbook(x, dout, seed=1, span=M if same_length else None, dropout=0.1)


@pytest.mark.parametrize(("dtype", "exact"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_scores_far_apart(dtype, exact):
    """Maxima that rise late and steeply: everything is rescaled often, and nothing overflows.

    Rounding the scores themselves costs digits, here as in the textbook; so its own errors are the measure. A few times
    as much, since backward has the weights from a rounded log-sum-exp.
    """
    x, dout = arguments(np.random.default_rng(4), 2, 2, 40, 20, 16, 30, True, (0.4, 1.0), dtype)
    x[0] *= 12
    x[1] *= np.linspace(0, 3, 60, dtype=dtype)[:, None, None]
    got, rounded = (results(backend, x, dout) for backend in (attention, ops))
    expected = results(ops, [a.astype(exact) for a in x], dout.astype(exact))
    for name, reference in expected.items():
        errors = [np.linalg.norm((y[name] - reference).ravel()) for y in (got, rounded)]
        assert errors[0] <= 20 * errors[1], (name, errors)


def test_threads_do_not_matter():
    x, dout = arguments(np.random.default_rng(5), 5, 3, 45, 30, 13, 17, True, (1.0, 0.0, 0.4), np.float32)
    assert_threads_do_not_matter(lambda: tuple(results(attention, x, dout, seed=2, span=30, dropout=0.2).values()))


def test_backward_twice_and_nothing_modified():
    x, dout = arguments(np.random.default_rng(6), 2, 2, 20, 12, 16, 9, True, (0.3, 0.9), np.float32)
    before = [a.copy() for a in (*x, dout)]
    _, cache = attention.attention_forward(*x, dropout=0.1, rng=np.random.default_rng(0))
    first, second = (attention.attention_backward(dout, cache) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, (*x, dout), strict=True))


def test_inputs_of_any_strides():
    x, dout = arguments(np.random.default_rng(7), 2, 3, 20, 12, 16, 9, True, None, np.float64)
    expected = results(attention, x, dout)

    def strided(a):
        return None if a is None else np.repeat(a, 2, axis=-1)[..., ::2]

    got = results(attention, [strided(a) for a in x], strided(dout))
    assert all(np.array_equal(got[name], expected[name]) for name in got if got[name] is not None)


@pytest.mark.parametrize("where", range(9))
def test_nan_is_noticed(where):
    """A model that has diverged must not look healthy."""
    x, dout = arguments(np.random.default_rng(8), 1, 2, 40, 10, 16, 9, True, (0.5, 1.0), np.float32)
    x[where][(-1,) * x[where].ndim] = np.nan
    got = results(attention, x, dout)
    assert np.isnan(got["out"]).any()
    assert np.isnan(got["dq"]).any() or where == 8


def test_layer_without_heads():
    x, dout = arguments(np.random.default_rng(9), 2, 0, 5, 3, 4, 6, True, (1.0,), np.float32)
    assert_equal_to_textbook(x, dout)


def test_no_matrix_of_weights_in_memory():
    """Twice the text takes about twice the memory; a T × S matrix would take four times."""

    def peak(T):
        POOL.clear()
        before = POOL.bytes_used
        x, dout = arguments(np.random.default_rng(0), 1, 1, T, 0, 16, 0, True, None, np.float32)
        got = results(attention, x, dout)
        assert got["dq"].shape == dout.shape
        return POOL.bytes_free + POOL.bytes_used - before

    assert peak(2048) < 2.5 * peak(1024)
    assert peak(2048) < 2048**2 * 4  # bytes of one such matrix


def test_errors_before_any_kernel():
    x, dout = arguments(np.random.default_rng(10), 2, 2, 5, 3, 4, 6, True, (1.0,), np.float32)

    def broken(position, value):
        return [*x[:position], value, *x[position + 1 :]]

    with pytest.raises(ValueError, match="k must be"):
        attention.attention_forward(*broken(1, x[1][:, :4]))
    with pytest.raises(ValueError, match="q must be float32 or float64 for a compiled kernel, got complex"):
        attention.attention_forward(x[0].astype(complex), *x[1:])
    with pytest.raises(ValueError, match="pk must have the dtype of q, float32, got float64"):
        attention.attention_forward(*broken(6, x[6].astype(float)))
    with pytest.raises(ValueError, match="span must be"):
        attention.attention_forward(*x, span=-1)
    _, cache = attention.attention_forward(*x)
    with pytest.raises(ValueError, match=r"dout must be float32 \(2, 5, 2, 4\) like the output"):
        attention.attention_backward(dout[:, :4], cache)
    with pytest.raises(ValueError, match=r"dout must be float32 \(2, 5, 2, 4\) like the output"):
        attention.attention_backward(dout.astype(float), cache)
