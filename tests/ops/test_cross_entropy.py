"""Cross-entropy: known values, invariances, and its gradient derived a second time."""

import math

import numpy as np
import pytest

from tinyprune.ops import cross_entropy_backward, cross_entropy_forward, log_softmax


def test_known_values():
    V = 7
    assert cross_entropy_forward(np.zeros((2, 3, V)), np.zeros((2, 3), int))[0] == pytest.approx(math.log(V))
    # p = (1/6, 2/6, 3/6)
    logits = np.log(np.array([[1.0, 2.0, 3.0]]))
    for target in range(3):
        loss, _ = cross_entropy_forward(logits, np.array([target]))
        assert loss == pytest.approx(-math.log((target + 1) / 6))


def test_it_is_a_mean_over_all_tokens(rng):
    logits, targets = rng.standard_normal((2, 3, 5)), rng.integers(0, 5, (2, 3))
    single = [cross_entropy_forward(logits[i][None], targets[i][None])[0] for i in np.ndindex(2, 3)]
    assert cross_entropy_forward(logits, targets)[0] == pytest.approx(np.mean(single))


def test_probabilities_sum_to_1_and_a_shift_of_all_logits_does_nothing(rng):
    logits = rng.standard_normal((4, 6))
    np.testing.assert_allclose(np.exp(log_softmax(logits)).sum(-1), 1)
    np.testing.assert_allclose(log_softmax(logits + 100), log_softmax(logits))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_do_not_overflow(dtype):
    logits = np.array([[1e4, 0, -1e4]], dtype)
    loss, cache = cross_entropy_forward(logits, np.array([2]))
    assert loss == 2e4
    np.testing.assert_array_equal(cross_entropy_backward(1.0, cache), [[1, 0, -1]])


def test_the_closed_form_is_what_the_staged_graph_gives(rng):
    """One elementary step at a time, each reversed by itself."""
    R, V, dout = 6, 5, 0.7
    logits, targets = rng.standard_normal((2, 3, V)), rng.integers(0, V, (2, 3))
    z, t = logits.reshape(R, V), targets.reshape(R)

    e = np.exp(z)
    total = e.sum(-1)
    log_total = np.log(total)
    chosen = z[np.arange(R), t]
    nll = log_total - chosen
    loss = nll.mean()

    dnll = np.full(R, dout / R)  # loss = mean(nll)
    dlog_total, dchosen = dnll, -dnll  # nll = log_total - chosen
    dtotal = dlog_total / total  # log_total = log(total)
    de = np.repeat(dtotal[:, None], V, 1)  # total = Σ e
    dz = de * e  # e = exp(z)
    dz[np.arange(R), t] += dchosen  # chosen = z[t]; z is used twice

    closed, cache = cross_entropy_forward(logits, targets)
    assert closed == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(cross_entropy_backward(dout, cache).reshape(R, V), dz, rtol=1e-12, atol=1e-15)


def test_gradients_of_a_row_cancel(rng):
    _, cache = cross_entropy_forward(rng.standard_normal((4, 6)), rng.integers(0, 6, 4))
    np.testing.assert_allclose(cross_entropy_backward(1.0, cache).sum(-1), 0, atol=1e-16)


@pytest.mark.parametrize("targets", [np.array([0, 5]), np.array([-1, 0])], ids=["too large", "negative"])
def test_targets_out_of_range(targets):
    with pytest.raises(ValueError, match=r"must lie in 0 … 4, got"):
        cross_entropy_forward(np.zeros((2, 5)), targets)


def test_targets_of_wrong_type_or_shape():
    with pytest.raises(ValueError, match="must be integers, got dtype float64"):
        cross_entropy_forward(np.zeros((2, 5)), np.zeros(2))
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), one or more, got \(3,\)"):
        cross_entropy_forward(np.zeros((2, 5)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"targets must have shape \(0,\), one or more, got \(0,\)"):
        cross_entropy_forward(np.zeros((0, 5)), np.zeros(0, int))
