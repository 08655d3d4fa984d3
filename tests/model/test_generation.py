"""Generation: reading one token at a time predicts what reading whole segments does, and draws follow log p."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small import ADAPTIVE, MODELS, read, small_config, small_model
from test_positions import UNUSUAL

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.generation import CachedDecoder, generate, sample, write_texts
from tinyprune.model.transformer import Transformer

# A layer with one head closed, a layer with all closed.
OPENED = np.array([[True, False, True], [False, False, False], [True, True, False]])


def expected_log_p(model: Transformer, text: np.ndarray) -> np.ndarray:
    """Predict every next token, (n, V), reading a text (n,) in whole segments."""
    return model.log_probabilities(read(model, text[None]))[0]


def one_by_one(model: Transformer, text: np.ndarray) -> np.ndarray:
    """Predict every next token, (n, V), reading a text (n,) token by token."""
    reader = CachedDecoder(model)
    return np.array([reader.predict(reader.read_token(int(token))) for token in text])


def draw_text(config: ModelConfig, n: int) -> np.ndarray:
    return np.random.default_rng(6).integers(0, config.V, n)


def assert_the_same(model: Transformer, text: np.ndarray, tolerance: float = 1e-12) -> None:
    got, expected = one_by_one(model, text), expected_log_p(model, text)
    assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


MASKS = [("same-length", *sizes) for sizes in ((5, 4), (3, 7), (4, 4), (4, 1), (4, 0))]
MASKS += [("causal", *sizes) for sizes in ((5, 4), (4, 4), (3, 6), (4, 5))]


@pytest.mark.parametrize(("mask", "T", "M"), MASKS, ids=str)
@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl", "llama"])
def test_the_same_is_seen(kind, mask, T, M):
    """In a text so long that keys fall out of sight; with a causal mask as long as memory holds all before."""
    config = small_config(kind, mask=mask, T=T, M=M)
    n = M // T * T + T if mask == "causal" else 5 * (T + M) + 2
    assert_the_same(small_model(config), draw_text(config, n))


def test_a_causal_mask_then_sees_the_latest_m_plus_t():
    """So does the last token of a segment with a full memory. With one layer, memory holds embeddings only."""
    config = small_config(mask="causal", L=1, T=4, M=4)
    model, text = small_model(config), draw_text(config, 23)
    log_p = one_by_one(model, text)
    for end in range(8, 24):
        window = expected_log_p(model, text[end - 8 : end])
        assert_allclose(log_p[end - 1], window[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "T"), [("transformer", T) for T in (1, 4, 5, 8)] + [("all-attention", 5)])
def test_learned_positions_have_the_latest_half_read_again_when_the_places_are_full(kind, T):
    config = small_config(kind, T=T, M=0, mask="causal", positions="learned")
    model, text = small_model(config), draw_text(config, 4 * T + 3)
    log_p = one_by_one(model, text)
    start, half = 0, T // 2
    for end in range(1, len(text) + 1):
        if end - start > T:
            start = end - 1 - half
        window = model.log_probabilities(model.forward(text[None, start:end])[0])[0]
        assert_allclose(log_p[end - 1], window[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(("T", "M"), [(5, 4), (3, 7), (9, 2)], ids=str)
@pytest.mark.parametrize(("kind", "options"), [(kind, {}) for kind in MODELS] + [*UNUSUAL.items()])
def test_a_text_read_at_once_is_read_as_by_tokens(kind, options, T, M, first):
    """Also a text longer than a segment, with closed heads, and as an addition to what was read."""
    config = small_config(kind, L=3, **options, T=T, **({"M": M} if small_config(kind, **options).M else {}))
    model = small_model(config, GateConfig(), OPENED)
    text = draw_text(config, 2 * T + 5)
    expected, reader = one_by_one(model, text), CachedDecoder(model)
    for n in (1, 2, T - 1, T, T + 2):
        reader.clear()  # of the text before
        for token in text[:first]:
            reader.read_token(int(token))
        got = [reader.predict(reader.read_text(text[first : first + n]))]
        got += [reader.predict(reader.read_token(int(token))) for token in text[first + n :]]
        assert_allclose(got, expected[first + n - 1 :], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"rope_scaling": (8.0, 1.0, 4.0, 16.0)}], ids=["plain", "scaled"])
def test_only_distances_count_however_late_the_position(options):
    """In float32 an angle of a million would be off by a thirtieth."""
    model = small_model(small_config("llama", rope_base=100.0, **options), dtype=np.float32)
    early, late = CachedDecoder(model), CachedDecoder(model)
    late.read = 1_000_001
    for token in draw_text(model.config, 20):
        expected, got = (reader.predict(reader.read_token(int(token))) for reader in (early, late))
        assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize(("kind", "options"), [(kind, {}) for kind in MODELS] + [*UNUSUAL.items()])
def test_gated_and_pruned_models(kind, options, hard, scaling):
    config = small_config(kind, L=3, **options)
    model = small_model(config, GateConfig(hard=hard, output_scaling=scaling), OPENED)
    text = draw_text(config, 4 * config.T + 1 if config.M else config.T)
    assert_the_same(model, text)
    smaller = remove_closed_heads(model)
    assert_the_same(smaller, text)
    assert_allclose(one_by_one(smaller, text), one_by_one(model, text), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_an_adaptive_softmax_and_single_precision(kind):
    config = small_config(kind, cutoffs=(4, 7), div_value=2)
    assert_the_same(small_model(config), draw_text(config, config.T))
    single = small_model(config, dtype=np.float32)
    reader = CachedDecoder(single)
    assert reader.predict(reader.read_token(3)).dtype == np.float32
    assert_the_same(single, draw_text(config, config.T), 1e-4)


def test_dropout_is_off():
    config = small_config(dropout=0.5, dropout_attention=0.5, dropout_embedding=0.5)
    text = draw_text(config, 12)
    dropping, plain = small_model(config), small_model(small_config())
    assert_array_equal(one_by_one(dropping, text), one_by_one(plain, text))


@pytest.mark.parametrize("kind", MODELS)
def test_temperature_0_and_top_1_take_the_likeliest_token(kind, rng):
    model = small_model(small_config(kind))
    text = draw_text(model.config, 20)
    likeliest = one_by_one(model, text).argmax(-1)
    assert len(set(likeliest)) > 3
    for options in ({"temperature": 0}, {"temperature": 5, "top_k": 1}):
        for n in (1, 5, 6, 20):
            first, second = generate(model, text[:n], 2, rng, **options)
            assert type(first) is int and first == likeliest[n - 1]
            assert second == one_by_one(model, np.append(text[:n], first))[-1].argmax()


@pytest.mark.parametrize("kind", MODELS)
def test_several_texts_are_written_side_by_side_each_as_the_model_predicts(kind):
    model = small_model(small_config(kind))
    rng = np.random.default_rng(3)
    ids = write_texts(model, np.array([1, 2, 7]), 5, rng)
    again, likeliest = np.random.default_rng(3), []
    noise = np.stack([again.gumbel(size=(3, 11)) for _ in range(5)], 1)
    for text, first, drawn in zip(ids, (1, 2, 7), noise, strict=True):
        log_p = one_by_one(model, np.array([first, *text[:-1]]))
        assert_array_equal((log_p + drawn).argmax(-1), text)
        likeliest.append(log_p.argmax(-1))
    assert ids.shape == (3, 5) and (np.array(likeliest) != ids).any()


def test_the_same_seed_writes_the_same_text():
    model = small_model(small_config())
    one, two, other = (list(generate(model, np.array([2]), 40, np.random.default_rng(s))) for s in (1, 1, 2))
    assert one == two != other
    assert list(generate(model, np.array([2]), 15, np.random.default_rng(1))) == one[:15]
    assert list(generate(model, np.array([2]), 0, np.random.default_rng(1))) == []


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt must hold at least one token, got none"),
        ([1], {"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
        ([1], {"top_k": 0}, "top_k must be at least 1, got 0"),
        ([1, 11], {}, "0 … 10"),
        ([1] * 5 + [-1], {}, "0 … 10"),  # more than a segment: the last by itself
    ],
)
def test_bad_arguments(prompt, options, message, rng):
    with pytest.raises(ValueError, match=message):
        list(generate(small_model(small_config()), np.array(prompt, int), 3, rng, **options))


P = np.array([0.05, 0.4, 0.1, 0.25, 0.2])


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (3.0, None), (1.0, 3), (0.7, 2), (1, 99)])
def test_the_distribution_of_draws(temperature, top_k):
    """They follow p^(1/temperature) of the k likeliest. Chi-square of 4 degrees exceeds 25 once in 20,000."""
    rng = np.random.default_rng(8)
    draws = [sample(np.log(P), rng, temperature, top_k) for _ in range(2500)]
    counts = np.bincount(draws, minlength=5)
    allowed = np.argsort(-P)[:top_k]
    p = np.stack([P[allowed], P[allowed] ** 1.5]) ** (1 / temperature)  # and others
    expected = 2500 * p / p.sum(1, keepdims=True)
    right, wrong = ((counts[allowed] - expected) ** 2 / expected).sum(1)
    assert counts[allowed].sum() == 2500 and right < 25 < wrong


@pytest.mark.parametrize(
    ("p", "temperature", "top_k", "drawn"),
    [
        # Among equally likely tokens those with the lower numbers stay.
        (np.full(5, 0.2), 1.0, 2, {0, 1}),
        (P, 0.0, None, {1}),
        (P, 1e-310, None, {1}),
        (P, 1e-30, None, {1}),
        (np.array([0, 0.5, 0, 0.5]), 1.0, None, {1, 3}),
    ],
    ids=str,
)
def test_what_may_be_drawn(p, temperature, top_k, drawn, rng):
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    assert {sample(log_p, rng, temperature, top_k) for _ in range(100)} == drawn
