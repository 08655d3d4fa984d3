"""The fused attention kernel where it has to be careful: long runs of keys, scores far apart, closed heads, memory."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cpu import attention
from tinyprune.kernels.cpu.workspace import POOL

from ..compare import assert_close

NAMES = ("out", "dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate")


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
    """Every entry as the textbook finds it in float64."""
    got = results(attention, x, dout, **options)
    expected = results(ops, [None if a is None else a.astype(float) for a in x], dout.astype(float), **options)
    assert_close(list(got.values()), list(expected.values()), dout.dtype.type)


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
    x[1] *= np.linspace(0, 15, 60, dtype=dtype)[:, None, None]
    got, rounded = (results(backend, x, dout) for backend in (attention, ops))
    expected = results(ops, [a.astype(exact) for a in x], dout.astype(exact))
    for name, reference in expected.items():
        errors = [np.linalg.norm((y[name] - reference).ravel()) for y in (got, rounded)]
        assert errors[0] <= 20 * errors[1], (name, errors)


@pytest.mark.parametrize("gate", [(0.0,), (1.0, 0.0, 0.0, 0.0, 0.0)])
def test_closed_heads(gate):
    x, dout = arguments(np.random.default_rng(1), 2, 5, 33, 10, 7, 5, True, gate, np.float64)
    assert_equal_to_textbook(x, dout, seed=1, span=10, dropout=0.3)


@pytest.mark.parametrize("where", range(9))
def test_nan_is_noticed(where):
    """A model that has diverged must not look healthy."""
    x, dout = arguments(np.random.default_rng(8), 1, 2, 40, 10, 16, 9, True, (0.5, 1.0), np.float32)
    x[where][(-1,) * x[where].ndim] = np.nan
    got = results(attention, x, dout)
    assert np.isnan(got["out"]).any()
    assert np.isnan(got["dq"]).any() or where == 8


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
