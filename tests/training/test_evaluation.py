"""Evaluation: it predicts every token once with memory throughout, and counts bits per character."""

import math

import numpy as np
import pytest
from small import ADAPTIVE, MODELS, read, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.errors import UsageError
from tinyprune.training.evaluation import Evaluation, evaluate, evaluate_windows, last_tokens


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


@pytest.mark.parametrize(("window", "stride"), [(5, 5), (5, 2), (5, 1), (4, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize("n", [2, 4, 5, 6, 17])
def test_a_window_predicts_what_no_window_before_it_has_seen(window, stride, n):
    model, tokens = small_model(small_config()), text(n)
    expected, seen = [], 0
    for start in range(0, n, stride):
        ids = tokens[start : start + window]
        new = range(max(seen - start, 1), len(ids))  # the first token of a window has nothing before it
        log_p = model.log_p(ids[None])[0]
        expected += [-log_p[i - 1, ids[i]] for i in new]
        seen = start + len(ids)
        if seen >= n:
            break
    found = evaluate_windows(model, tokens, 10 * n, window, stride)
    assert found.tokens == len(expected) == n - 1 - (0 if stride < window else (n - 1) // window)
    assert found.nats_per_token == pytest.approx(np.mean(expected), rel=1e-6)
    assert found.characters == pytest.approx(10 * found.tokens)


def test_last_tokens_of_texts_read_together_are_those_of_each_alone():
    model = small_model(small_config())
    texts, last = [text(n) for n in (6, 3, 5, 2)], [3, 2, 4, 1]
    for ids, k, (log_p, likeliest) in zip(texts, last, last_tokens(model, texts, last, B=3), strict=True):
        every = model.log_p(ids[None, :-1])[0]
        np.testing.assert_allclose(log_p, every[np.arange(len(ids) - 1), ids[1:]][-k:], rtol=1e-6)
        assert likeliest.tolist() == (every.argmax(-1) == ids[1:])[-k:].tolist()


WRONG = [(0, 1, "window must be at least 2 tokens, got 0"), (5, 6, "stride must be from 1 to the window, 5; got 6")]
WRONG += [(5, 0, "stride must be from 1 to the window, 5; got 0")]


@pytest.mark.parametrize(("window", "stride", "message"), WRONG)
def test_windows_that_are_refused(window, stride, message):
    with pytest.raises(UsageError, match=message):
        evaluate_windows(small_model(small_config()), text(9), 9, window, stride)


def test_a_window_may_be_longer_than_a_segment_where_no_parameter_depends_on_it():
    llama, tokens = small_model(small_config("llama")), text(30)
    whole = evaluate_windows(llama, tokens, 30, 30, 30)
    assert len(whole.segments) == 1 and whole.tokens == 29
    gpt2 = small_model(small_config("gpt2"))
    with pytest.raises(
        UsageError, match=f"window must be at most {gpt2.config.T}, for which this model is made; got 30"
    ):
        evaluate_windows(gpt2, tokens, 30, 30, 30)
