"""The gate: how often it is 0, 1 and between, straight-through, evaluation, extremes."""

import math

import numpy as np
import pytest

from tinyprune.ops import draw_noise, hard_concrete_backward, hard_concrete_forward, p_open

PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
LOUIZOS = {"beta": 2 / 3, "gamma": -0.1, "zeta": 1.1}
LOPSIDED = {"beta": 0.5, "gamma": -0.3, "zeta": 1.2}
SAMPLES = 200_000


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("log_alpha", [-2.0, -0.3, 0.0, 1.1, 2.0])
@pytest.mark.parametrize("gate", [PAPER, LOUIZOS, LOPSIDED], ids=["paper", "Louizos", "lopsided"])
def test_shares_of_closed_partly_and_fully_open(gate, log_alpha):
    """Within five standard deviations of the probabilities: P(s > x) = sigmoid(log_alpha − beta · log(x / (1 − x)))."""
    beta, gamma, zeta = gate.values()
    u = draw_noise(SAMPLES, np.random.default_rng(6), np.float64)
    g, _ = hard_concrete_forward(np.full(SAMPLES, log_alpha), u, **gate, hard=False)
    assert g.min() == 0 and g.max() == 1
    opened = logistic(log_alpha - beta * math.log(-gamma / zeta))
    fully = logistic(log_alpha - beta * math.log((1 - gamma) / (zeta - 1)))
    assert p_open(np.array(log_alpha), **gate) == pytest.approx(opened)
    states = (g > 0, opened), (g == 1, fully), ((g > 0) & (g < 1), opened - fully)
    for state, p in states:
        assert abs(state.mean() - p) <= 5 * math.sqrt(p * (1 - p) / SAMPLES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_evaluation_a_hard_gate_is_open_from_log_alpha_0_on(dtype):
    log_alpha = np.array([-50, -1, -1e-3, 0, 1e-3, 1, 50], dtype)
    hard, _ = hard_concrete_forward(log_alpha, None, **PAPER, hard=True)
    np.testing.assert_array_equal(hard, log_alpha >= 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_numbers_stay_finite(dtype):
    log_alpha = np.array([-1e4, 1e4, -100, 100], dtype)
    u = np.array([1e-6, 1 - 1e-6, 0.5, 0.5], dtype)
    for noise in (u, None):
        gate, cache = hard_concrete_forward(log_alpha, noise, **PAPER, hard=False)
        np.testing.assert_array_equal(gate, [0, 1, 0, 1])
        np.testing.assert_array_equal(hard_concrete_backward(np.ones(4, dtype), cache), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_lies_inside_of_0_and_1(dtype):
    """The ends themselves are too rare to be seen in samples, so the draws are compared with those of that range."""
    u = draw_noise((300, 400), np.random.default_rng(0), dtype)
    expected = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (300, 400)).astype(dtype)
    np.testing.assert_array_equal(u, expected, strict=True)
    assert u.min() > 0 and u.max() < 1


@pytest.mark.parametrize("change", [{"beta": 0.0}, {"gamma": 0.0}, {"gamma": 0.1}, {"zeta": 1.0}], ids=str)
def test_constants_at_the_end_of_their_range(change):
    (name, value) = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"needed are beta > 0, gamma < 0, zeta > 1; got .*{name} {value}"):
        hard_concrete_forward(np.zeros(3), None, **PAPER | change, hard=True)
