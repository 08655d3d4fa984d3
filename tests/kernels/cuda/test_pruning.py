"""What only pruning needs: gates at their bounds, many heads, views."""

import numpy as np
import pytest
from tinyprune.kernels.cuda.pruning.layerwise_error import THREADS, error_of

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host

from .compare import assert_close, cuda, normal, on_device

GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}


def test_large_numbers_noise_in_either_memory_and_views(place):
    log_alpha = np.array([[-1e4, 1e4, -90], [90, 3, -2]], np.float32)
    u = np.full((3, 2), 1e-6, np.float32)
    u[1] = 1 - 1e-6
    expected, _ = ops.hard_concrete_forward(log_alpha.T.astype(float), u.astype(float), **GATE, hard=False)
    for noise in (u, on_device(u)):
        assert_close(cuda.hard_concrete_forward(to_device(log_alpha).T, noise, **GATE, hard=False)[0], expected)


@pytest.mark.parametrize("hard", [False, True])
def test_nan_comes_back(place, hard):
    nan = np.full(2, np.nan, np.float32)
    gate, cache = cuda.hard_concrete_forward(to_device(nan), None, **GATE, hard=hard)
    with np.errstate(invalid="ignore"):
        expected, expected_cache = ops.hard_concrete_forward(nan, None, **GATE, hard=hard)
    dout = np.ones(2, np.float32)
    assert np.array_equal(to_host(gate), expected, equal_nan=True)
    dlog_alpha = to_host(cuda.hard_concrete_backward(to_device(dout), cache))
    assert np.array_equal(dlog_alpha, ops.hard_concrete_backward(dout, expected_cache), equal_nan=True)


def test_more_heads_than_a_block_has_threads(place, both_orders):
    """The last kernel alone, since a pair of heads is a block of the one before."""
    H, D, scale, count = THREADS + 3, 5, 1.5, 7
    gate, G, outputs, bo = normal((H,), (H, H), (D,), (D,))
    error, slope = empty(()), empty(H)
    given = [to_device(x) for x in (gate, G + G.T, outputs, bo)]
    error_of(1, given[0], np.float32(scale), *given[1:], np.float32(count), H, D, error, slope)
    gate, G, outputs, bo = (x.astype(float) for x in (gate, G, outputs, bo))
    full = 2 * G.sum() + 2 * outputs @ bo + count * bo @ bo
    e = scale * gate - 1
    assert_close(error, np.array(e @ (G + G.T) @ e / full))
    assert_close(slope, 2 * scale * (G + G.T) @ e / full)


def test_a_layer_that_adds_nothing_makes_no_error(place):
    gate, o, Wo, bo = normal((3,), (1, 2, 3, 2), (3 * 2, 4), (4,))
    given = map(to_device, (gate, o, 0 * Wo, 0 * bo))
    error, cache = cuda.layerwise_error_forward(*given)
    assert float(error) == 0
    assert np.array_equal(to_host(cuda.layerwise_error_backward(1.0, cache)), np.zeros(3))


def test_join_reads_views(place):
    a, b, c, d = normal((3,), (0,), (5, 2), (300,))
    arrays = [to_device(a), to_device(b), to_device(c).T[1], to_device(d)[1:]]
    out = cuda.join(arrays)
    assert np.array_equal(to_host(out), np.concatenate([a, b, c[:, 1], d[1:]]))
    assert np.array_equal(to_host(cuda.join(arrays[:1])), a) and cuda.join(arrays[:1]).lease is not arrays[0].lease
