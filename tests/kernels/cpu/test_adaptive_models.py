"""Whole models with an adaptive softmax on the numba backend: the textbook's numbers, and generation."""

import numpy as np
import pytest
from small import MODELS, read, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import CachedDecoder

from ..compare import TOLERANCE

NUMBA, NUMPY = get_backend("numba"), get_backend("numpy")
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
each_kind = pytest.mark.parametrize("kind", MODELS)


def adaptive_model(kind, backend, dtype=np.float64):
    dropout = {"dropout": 0.1, "dropout_attention": 0.1, "dropout_embedding": 0.1}
    config = small_config(kind, cutoffs=(4, 7), div_value=2, **dropout)
    model = small_model(config, GateConfig(hard=True), dtype=dtype)
    model.ops = backend
    return model


def step(model):
    """Loss and gradients of a segment read with memory, everything drawn alike."""
    rng = np.random.default_rng(4)
    first, ids, targets = rng.integers(0, model.config.V, (3, 2, model.config.T))
    _, memory, _ = model.forward(first)
    loss, _, cache = model.loss(ids, targets, memory, rng)
    return {"loss": loss} | model.backward(0.7, cache)


@each_dtype
@each_kind
def test_a_step_like_the_textbooks(kind, dtype):
    got, expected = step(adaptive_model(kind, NUMBA, dtype)), step(adaptive_model(kind, NUMPY))
    assert list(got) == list(expected) and "embedding.2" in got
    # Rounding goes through every layer there and back; a gradient that is truly 0 has none but that.
    largest = max(np.linalg.norm(g) for g in expected.values())
    for name, value in expected.items():
        assert got[name].dtype == dtype and got[name].shape == value.shape, name
        distance = np.linalg.norm(got[name] - value)
        assert distance <= 10 * TOLERANCE[dtype] * (np.linalg.norm(value) + 1e-2 * largest), name


@each_kind
def test_text_read_word_by_word(kind):
    model = adaptive_model(kind, NUMBA)
    text = np.random.default_rng(6).integers(0, model.config.V, model.config.T)
    reader = CachedDecoder(model)
    got = np.array([reader.step(int(word)) for word in text])
    np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-12)
    model.ops = NUMPY
    np.testing.assert_allclose(got, model.log_probabilities(read(model, text[None]))[0], rtol=1e-11)
