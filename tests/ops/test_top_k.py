"""Soft top-k: exactly k, those with the largest numbers, by chance in training."""

import itertools

import numpy as np
import pytest

from tinyprune.ops import draw_gumbel, top_k_backward, top_k_forward


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", range(7))
def test_hard_gates_are_one_for_the_k_largest(k, dtype, rng):
    for _ in range(20):
        log_alpha, noise = rng.standard_normal((2, 6)).astype(dtype)
        for drawn in (noise, None):
            gate, _ = top_k_forward(log_alpha, drawn, k=k, tau=1.0, hard=True)
            a = log_alpha if drawn is None else log_alpha + drawn
            assert gate.dtype == dtype and set(gate) <= {0, 1} and gate.sum() == k
            assert not (0 < k < 6) or a[gate == 1].min() > a[gate == 0].max()


def test_of_equal_numbers_the_first_are_open_in_evaluation():
    gate, _ = top_k_forward(np.full(5, 2.0), None, k=2, tau=1.0, hard=False)
    np.testing.assert_array_equal(gate, [1, 1, 0, 0, 0])


def test_subsets_are_drawn_with_the_probability_of_drawing_without_replacement(rng):
    """Gumbel's trick (Vieira 2014): k draws without replacement, each in proportion to exp(log_alpha)."""
    log_alpha = np.array([1.0, 0.0, 0.5, -1.0])
    weight = np.exp(log_alpha)
    expected = np.zeros(4)
    for i, j in itertools.permutations(range(4), 2):
        p = weight[i] / weight.sum() * weight[j] / (weight.sum() - weight[i])
        expected[i] += p
        expected[j] += p
    draws = [
        top_k_forward(log_alpha, draw_gumbel(4, rng, np.float64), k=2, tau=1.0, hard=True)[0] for _ in range(4_000)
    ]
    # standard deviation of a share: at most sqrt(1/4 / 4,000) = 0.0079
    np.testing.assert_allclose(np.mean(draws, 0), expected, atol=4 * 0.0079)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log_alpha", [[60.0, 1.0, 0.5, -80.0], [20.0, 1.0, 0.5, -5.0], [300.0, 200.0, 0.0, -300.0]])
def test_a_number_far_above_the_others_is_chosen_once(log_alpha, dtype):
    """log(1 − p) has to keep its digits where p is 1 to the last."""
    log_alpha, dout = np.array(log_alpha, dtype), np.array([1.0, -2.0, 0.5, 3.0], dtype)
    gate, cache = top_k_forward(log_alpha, np.zeros(4, dtype), k=2, tau=0.1, hard=False)
    np.testing.assert_allclose(gate[0], 1, atol=1e-6)
    assert gate.sum() == pytest.approx(2, rel=1e-6) and gate.max() < 1.000001
    gradient = top_k_backward(dout, cache)
    assert np.isfinite(gradient).all() and gradient.dtype == dtype
    # the gradient at the border between what is chosen second and third, where there is one
    exact, exact_cache = top_k_forward(log_alpha.astype(np.float64), np.zeros(4), k=2, tau=0.1, hard=False)
    np.testing.assert_allclose(gate, exact, atol=1e-5)
    np.testing.assert_allclose(gradient, top_k_backward(dout.astype(np.float64), exact_cache), atol=1e-5)


def test_with_a_high_temperature_a_large_number_counts_more_than_once():
    gate, _ = top_k_forward(np.array([60.0, 0.0, 0.0]), np.zeros(3), k=2, tau=1.0, hard=False)
    np.testing.assert_allclose(gate, [1.5, 0.25, 0.25])  # in the second round 60 + log(2 e⁻⁶⁰) = log 2 against 0


@pytest.mark.parametrize("k", [0, 1])
def test_a_single_gate(k):
    gate, cache = top_k_forward(np.array([0.3]), np.zeros(1), k=k, tau=0.5, hard=False)
    assert gate == [k] and top_k_backward(np.ones(1), cache) == [0]
