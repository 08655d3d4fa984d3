"""Hard-Concrete gates against the textbook: clipped and inside, with noise and without, hard and soft."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.hard_concrete import THREADS

from .compare import assert_close, assert_equal_to_textbook, normal, on_device

cuda = get_backend("cuda")


GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(6,), (), (2, 3), (THREADS + 1,), (0,)])
@pytest.mark.parametrize("noisy", [False, True])
def test_equals_textbook(place, hard, shape, noisy):
    log_alpha, dout = map(np.asarray, normal(shape, shape))
    log_alpha = np.asarray(3 * log_alpha, np.float32)
    u = np.asarray(np.random.default_rng(1).uniform(0.1, 0.9, shape), np.float32) if noisy else None
    assert_equal_to_textbook("hard_concrete", (log_alpha, u), dout, **GATE, hard=hard)


def test_gates_are_in_every_state(place):
    """Clipped on both sides and inside on both sides of one half, exactly as in the textbook."""
    log_alpha = np.array([-1.5, -0.9, -0.1, 0.2, 0.5, 1.9], np.float32)
    u = np.array([0.2, 0.6, 0.45, 0.5, 0.4, 0.7], np.float32)
    for hard in (False, True):
        gate, cache = cuda.hard_concrete_forward(to_device(log_alpha), u, **GATE, hard=hard)
        expected, _ = ops.hard_concrete_forward(log_alpha.astype(float), u.astype(float), **GATE, hard=hard)
        gate = to_host(gate)
        assert np.array_equal(gate == 0, expected == 0) and np.array_equal(gate == 1, expected == 1)
        slope = to_host(cuda.hard_concrete_backward(to_device(np.ones(6, np.float32)), cache))
        assert np.array_equal(slope != 0, [False, True, True, True, True, False])


def test_on_the_border_a_hard_gate_is_open(place):
    zero = to_device(np.zeros(1, np.float32))
    assert to_host(cuda.hard_concrete_forward(zero, None, **GATE, hard=True)[0]) == 1


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


def test_bad_arguments(place):
    log_alpha = to_device(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="needed are beta > 0, gamma < 0, zeta > 1; got beta 0, gamma -1, zeta 2"):
        cuda.hard_concrete_forward(log_alpha, None, beta=0, gamma=-1, zeta=2, hard=False)
    with pytest.raises(ValueError, match=r"u must have the shape of log_alpha, \(3,\), got \(2,\)"):
        cuda.hard_concrete_forward(log_alpha, np.ones(2, np.float32), **GATE, hard=False)
    with pytest.raises(ValueError, match="computes in float32, got an array of float64; convert it first"):
        cuda.hard_concrete_forward(log_alpha, np.full(3, 0.5), **GATE, hard=False)
    _, cache = cuda.hard_concrete_forward(log_alpha, None, **GATE, hard=False)
    with pytest.raises(ValueError, match=r"dout must have shape \(3,\) like the output, got \(2,\)"):
        cuda.hard_concrete_backward(log_alpha[1:], cache)
