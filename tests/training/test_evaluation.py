"""Evaluation: it predicts every token once with memory throughout, and counts bits per character."""

import math

import numpy as np
import pytest
from small import ADAPTIVE, MODELS, read, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.errors import UsageError
from tinyprune.training.evaluation import Evaluation, evaluate


def text(n: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 11, n)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in MODELS] + [(kind, {"cutoffs": (4, 7), "div_value": 2}) for kind in ADAPTIVE],
)
@pytest.mark.parametrize("n", [2, 6, 7, 16, 18])
def test_each_token_but_the_first_is_predicted_once(n, kind, options):
    """With segments of 5, 5, 5 and 2 the mean is over tokens, not over segments."""
    model = small_model(small_config(kind, mask="causal", **options))
    tokens = text(n)
    log_p = model.log_probabilities(read(model, tokens[None, :-1]))[0]
    result = evaluate(model, tokens, 100)
    assert result.nats_per_token == pytest.approx(-log_p[np.arange(n - 1), tokens[1:]].mean(), rel=1e-12)
    assert result.tokens == n - 1
    assert result.characters == pytest.approx(100 * (n - 1) / n)


def test_without_noise_and_without_a_trace():
    gate = GateConfig(hard=False)
    noisy = small_model(small_config(dropout=0.5, dropout_attention=0.5, dropout_embedding=0.5), gate)
    before = {name: x.copy() for name, x in noisy.params.items()}
    first, second = evaluate(noisy, text(30), 30), evaluate(noisy, text(30), 30)
    assert first == second == evaluate(small_model(small_config(), gate), text(30), 30)
    assert all(np.array_equal(noisy.params[name], x) for name, x in before.items())


def test_bits_and_perplexity():
    """exp(1000) is more than a float can hold."""
    result = Evaluation(nats_per_token=2 * math.log(2), tokens=9, characters=45.0)
    assert result.perplexity == pytest.approx(4)
    assert result.bits_per_character == pytest.approx(2 * 9 / 45)
    assert Evaluation(nats_per_token=1000.0, tokens=9, characters=9.0).perplexity == math.inf


@pytest.mark.parametrize("n", [0, 1])
def test_a_text_without_anything_to_predict(n):
    with pytest.raises(UsageError, match=f"at least 2 tokens, got {n}"):
        evaluate(small_model(small_config()), text(n), n)
