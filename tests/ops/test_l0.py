"""L0: the sum of the opening probabilities, and what it means in samples."""

import math

import numpy as np
import pytest

from tinyprune.ops import draw_noise, hard_concrete_forward, l0_backward, l0_forward

GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}


def probability(log_alpha: float) -> float:
    return 1 / (1 + math.exp(-(log_alpha - 0.333 * math.log(0.1 / 1.1))))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_it_is_the_sum_over_all_heads(shape, rng):
    log_alpha = rng.standard_normal(shape)
    l0, cache = l0_forward(log_alpha, **GATE)
    p = np.reshape([probability(x) for x in log_alpha.reshape(-1)], shape)
    assert l0 == pytest.approx(p.sum(), rel=1e-13)
    np.testing.assert_allclose(l0_backward(0.3, cache), 0.3 * p * (1 - p), rtol=1e-12)


def test_it_counts_the_open_gates_of_samples():
    log_alpha = np.array([-2.0, -0.5, 0.0, 0.7, 2.0])
    samples = 100_000
    u = draw_noise((samples, 5), np.random.default_rng(1), np.float64)
    gate, _ = hard_concrete_forward(np.broadcast_to(log_alpha, u.shape), u, **GATE, hard=False)
    opened = (gate > 0).sum(-1)
    assert abs(opened.mean() - l0_forward(log_alpha, **GATE)[0]) < 5 * opened.std() / math.sqrt(samples)
