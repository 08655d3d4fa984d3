"""Whole models with an adaptive softmax on the numba backend: gradients, the textbook's numbers, generation."""

import numpy as np
import pytest
from small import read, small_config, small_model

from tinyprune.config import KINDS, GateConfig
from tinyprune.gradcheck import check_gradients, model_case, operation_cases
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import CachedDecoder

from .compare import TOLERANCE, each_dtype

NUMBA, NUMPY = get_backend("numba"), get_backend("numpy")
each_kind = pytest.mark.parametrize("kind", KINDS)


def adaptive_model(kind, backend, dtype=np.float64):
    dropout = {"dropout": 0.1, "dropout_attention": 0.1, "dropout_embedding": 0.1}
    config = small_config(kind, cutoffs=(4, 7), div_value=2, **dropout)
    model = small_model(config, GateConfig(hard=True), dtype=dtype)
    model.ops = backend
    return model


def assert_gradients_pass(case, **options):
    records = check_gradients(
        case.forward,
        case.backward,
        *case.inputs.values(),
        mode="central",
        name=case.operation,
        argument_names=list(case.inputs),
        **options,
    )
    assert records
    for record in records:
        assert record.passed, record.message()


@pytest.mark.parametrize(
    "case", [c for c in operation_cases(NUMBA) if c.operation.startswith("adaptive")], ids=lambda case: case.operation
)
def test_gradients_of_the_operations_entry_by_entry(case):
    assert_gradients_pass(case)


@each_kind
def test_gradients_of_the_model_along_directions(kind):
    assert_gradients_pass(model_case(kind, hard=False, adaptive=True, ops=NUMBA), directions=2)


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
