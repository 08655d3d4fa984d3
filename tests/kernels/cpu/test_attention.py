"""The fused attention kernel where it has to be careful: long runs of keys, scores far apart, closed heads, memory."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cpu import attention
from tinyprune.kernels.cpu.workspace import POOL

from ..compare import assert_close, assert_errors_like, attention_arguments, attention_results


def assert_equal_to_textbook(x, dout, **options):
    """Every entry as the textbook finds it in float64."""
    got = attention_results(attention, x, dout, **options, rng=np.random.default_rng(1))
    x, exact = [a.astype(float) for a in x], dout.astype(float)
    expected = attention_results(ops, x, exact, **options, rng=np.random.default_rng(1))
    assert_close(list(got.values()), list(expected.values()), dout.dtype.type)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("T", "M", "N"), [(64, 300, 530), (130, 0, 300), (33, 257, 256)])
@pytest.mark.parametrize("same_length", [True, False])
def test_runs_of_keys_longer_than_a_chunk(T, M, N, same_length, dtype):
    x, dout = attention_arguments(3, 1, 2, T, M, 16, N, True, (0.5, 1.0), dtype)
    assert_equal_to_textbook(x, dout, span=M if same_length else None, dropout=0.1)


@pytest.mark.parametrize(("dtype", "exact"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_scores_far_apart(dtype, exact):
    """Maxima that rise late and steeply: everything is rescaled often, and nothing overflows."""
    x, dout = attention_arguments(4, 2, 2, 40, 20, 16, 30, True, (0.4, 1.0), dtype)
    x[0] *= 12
    x[1] *= np.linspace(0, 15, 60, dtype=dtype)[:, None, None]
    got, rounded = (attention_results(backend, x, dout) for backend in (attention, ops))
    assert_errors_like(got, rounded, attention_results(ops, [a.astype(exact) for a in x], dout.astype(exact)))


@pytest.mark.parametrize("gate", [(0.0,), (1.0, 0.0, 0.0, 0.0, 0.0)])
def test_closed_heads(gate):
    x, dout = attention_arguments(1, 2, 5, 33, 10, 7, 5, True, gate, np.float64)
    assert_equal_to_textbook(x, dout, span=10, dropout=0.3)


def test_no_matrix_of_weights_in_memory():
    """Twice the text takes about twice the memory; a T × S matrix would take four times."""

    def peak(T):
        POOL.clear()
        before = POOL.bytes_used
        x, dout = attention_arguments(0, 1, 1, T, 0, 16, 0, True, None, np.float32)
        got = attention_results(attention, x, dout)
        assert got["dq"].shape == dout.shape
        return POOL.bytes_free + POOL.bytes_used - before

    assert peak(2048) < 2.5 * peak(1024)
    assert peak(2048) < 2048**2 * 4  # bytes of one such matrix
