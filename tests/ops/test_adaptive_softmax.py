"""Adaptive softmax: it is a distribution over all words, and the plain softmax is its special case."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from tinyprune.ops import (
    adaptive_log_probabilities,
    adaptive_softmax_backward,
    adaptive_softmax_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    linear_backward,
    linear_forward,
)
from tinyprune.ops.adaptive_softmax import TEXTBOOK

WORDS, WIDTHS = [4, 3, 5], [6, 3, 2]
V, D = sum(WORDS), WIDTHS[0]


@pytest.fixture
def weights(rng):
    tables = [rng.standard_normal((words, width)) for words, width in zip(WORDS, WIDTHS, strict=True)]
    projections = [rng.standard_normal((width, D)) for width in WIDTHS[1:]]
    biases = [rng.standard_normal(words) for words in WORDS]
    return tables, projections, rng.standard_normal((2, D)), rng.standard_normal(2), biases


def test_probabilities_sum_to_1(weights, rng):
    log_p = adaptive_log_probabilities(rng.standard_normal((2, 3, D)), *weights)
    assert log_p.shape == (2, 3, V)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-13)


def test_the_loss_is_the_mean_of_minus_log_p_of_the_targets(weights, rng):
    x, targets = rng.standard_normal((2, 20, D)), rng.integers(0, V, (2, 20))
    log_p = adaptive_log_probabilities(x, *weights)
    loss, _ = adaptive_softmax_forward(x, targets, *weights)
    assert loss == pytest.approx(-np.take_along_axis(log_p, targets[..., None], -1).mean(), rel=1e-13)


def test_every_word_by_itself(weights, rng):
    x = rng.standard_normal((1, D))
    log_p = adaptive_log_probabilities(x, *weights)
    for word in range(V):
        assert adaptive_softmax_forward(x, np.array([word]), *weights)[0] == pytest.approx(-log_p[0, word])


def test_one_cluster_is_the_plain_softmax(rng):
    x, targets = rng.standard_normal((3, 4, D)), rng.integers(0, V, (3, 4))
    E, bias = rng.standard_normal((V, D)), rng.standard_normal(V)
    logits, linear = linear_forward(x, E.T, bias)
    plain, plain_cache = cross_entropy_forward(logits, targets)
    dx, dW, dbias = linear_backward(cross_entropy_backward(0.7, plain_cache), linear)

    loss, cache = adaptive_softmax_forward(x, targets, [E], [], np.zeros((0, D)), np.zeros(0), [bias])
    assert loss == pytest.approx(plain, rel=1e-14)
    got_dx, (dE,), dprojections, dcluster_weight, dcluster_bias, (got_dbias,) = adaptive_softmax_backward(0.7, cache)
    for got, expected in ((got_dx, dx), (dE, dW.T), (got_dbias, dbias)):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    assert dprojections == [] and dcluster_weight.shape == (0, D) and dcluster_bias.shape == (0,)


def test_a_cluster_that_is_absent_has_gradient_zero_but_its_logit_has_not(weights, rng):
    targets = np.array([0, 5, 3])
    _, cache = adaptive_softmax_forward(rng.standard_normal((3, D)), targets, *weights)
    _, dtables, dprojections, dcluster_weight, dcluster_bias, dbiases = adaptive_softmax_backward(1.0, cache)
    assert dtables[1].any() and dprojections[0].any() and dbiases[1].any()
    for got, weight in ((dtables[2], weights[0][2]), (dprojections[1], weights[1][1]), (dbiases[2], weights[4][2])):
        assert got.shape == weight.shape and not got.any()
    assert dcluster_weight[1].any() and dcluster_bias[1] > 0


@pytest.mark.parametrize("bad", [-1, V])
def test_targets_out_of_range(bad, weights):
    with pytest.raises(ValueError, match="must lie in 0 … 11"):
        adaptive_softmax_forward(np.ones((1, D)), np.array([bad]), *weights)


def test_targets_of_wrong_type_or_shape(weights):
    with pytest.raises(ValueError, match="must be integers, got dtype float64"):
        adaptive_softmax_forward(np.ones((1, D)), np.zeros(1), *weights)
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), one or more, got \(3,\)"):
        adaptive_softmax_forward(np.ones((2, D)), np.zeros(3, int), *weights)
    with pytest.raises(ValueError, match=r"targets must have shape \(0,\), one or more"):
        adaptive_softmax_forward(np.ones((0, D)), np.zeros(0, int), *weights)


def test_parts_handed_in_are_the_ones_used(weights, rng):
    """Every one of them, and nothing else once or more."""
    x, targets = rng.standard_normal((9, D)), np.arange(9)

    def run(parts):
        loss, cache = adaptive_softmax_forward(x, targets, *weights, parts=parts)
        return loss, adaptive_softmax_backward(1.0, cache), adaptive_log_probabilities(x, *weights, parts=parts)

    used = []

    def noticed(name):
        def part(*arguments):
            used.append(name)
            return getattr(TEXTBOOK, name)(*arguments)

        return part

    loss, _, _ = run(SimpleNamespace(**{name: noticed(name) for name in vars(TEXTBOOK)}))
    assert loss == run(TEXTBOOK)[0]
    # The head once and each of two tails: forward and log p need a product for the head, two for a tail.
    expected = {"linear_forward": 10, "linear_backward": 5, "log_softmax": 3}
    expected |= {"cross_entropy_forward": 3, "cross_entropy_backward": 3}
    assert Counter(used) == expected
