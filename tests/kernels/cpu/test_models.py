"""Whole models on the numba backend: the textbook's numbers, and no BLAS, whose threads would fight with Numba's.

NumPy gives matrix products to BLAS. They are looked for in the source: of all kernels, and of every function of the
package that runs in a model's step, the textbook's among them.
"""

import ast
import inspect
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from small import ADAPTIVE, MODELS, read, small_config, small_model

import tinyprune
from tinyprune.config import GateConfig
from tinyprune.kernels import cpu
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import CachedDecoder

from ..compare import TOLERANCE

NUMBA, NUMPY = get_backend("numba"), get_backend("numpy")
DROPOUT = {"dropout": 0.1, "dropout_attention": 0.1, "dropout_embedding": 0.1}
CALLS = {"dot", "einsum", "inner", "linalg", "matmul", "matvec", "tensordot", "vdot", "vecdot", "vecmat"}
PACKAGE = str(Path(tinyprune.__file__).parent)
each_kind = pytest.mark.parametrize("kind", MODELS)


def make(kind, backend, dtype=np.float64, cutoffs=(4, 7), hard=True):
    """A model with gates, dropout, and by default an adaptive softmax, if it can have one."""
    cutoffs = cutoffs if kind in ADAPTIVE else ()
    config = small_config(kind, cutoffs=cutoffs, div_value=2, **DROPOUT)
    model = small_model(config, GateConfig(hard=hard), dtype=dtype)
    model.ops = backend
    return model


def step(model):
    """Loss and gradients of a segment read with memory, everything drawn alike."""
    rng = np.random.default_rng(4)
    first, ids, targets = rng.integers(0, model.config.V, (3, 2, model.config.T))
    _, memory, _ = model.forward(first)
    loss, _, cache = model.loss(ids, targets, memory, rng)
    return {"loss": loss} | model.backward(0.7, cache)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_kind
def test_a_step_like_the_textbooks(kind, dtype):
    got, expected = step(make(kind, NUMBA, dtype)), step(make(kind, NUMPY))
    assert list(got) == list(expected) and ("embedding.2" in got) == (kind in ADAPTIVE)
    # Rounding goes through every layer there and back; a gradient that is truly 0 has none but that.
    largest = max(np.linalg.norm(g) for g in expected.values())
    for name, value in expected.items():
        assert got[name].dtype == dtype and got[name].shape == value.shape, name
        distance = np.linalg.norm(got[name] - value)
        assert distance <= 10 * TOLERANCE[dtype] * (np.linalg.norm(value) + 1e-2 * largest), name


@each_kind
def test_text_read_word_by_word(kind):
    model = make(kind, NUMBA)
    text = np.random.default_rng(6).integers(0, model.config.V, model.config.T)
    reader = CachedDecoder(model)
    got = np.array([reader.step(int(word)) for word in text])
    np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-12)
    model.ops = NUMPY
    np.testing.assert_allclose(got, model.log_probabilities(read(model, text[None]))[0], rtol=1e-11)


def products(source: str) -> set[str]:
    """What NumPy would give to BLAS: operators, and names after a dot, but not an engine's products."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(source))))
    dotted = [node for node in nodes if isinstance(node, ast.Attribute)]
    names = {node.attr for node in dotted if getattr(node.value, "id", None) not in ("ops", "products")}
    return names & CALLS | {"@" for node in nodes if isinstance(getattr(node, "op", None), ast.MatMult)}


def products_in_a_step(model) -> set[str]:
    """Functions of the package with a product in a step and in the probabilities of every word."""
    seen = set()

    def notice(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            seen.add(code)

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        step(model)
        model.log_probabilities(np.zeros((2, model.config.D)))
    finally:
        sys.setprofile(before)
    return {code.co_name for code in seen if products(inspect.getsource(code))}


def test_no_product_in_the_source_of_a_kernel():
    found = {path.name: products(path.read_text(encoding="utf-8")) for path in Path(cpu.__file__).parent.glob("*.py")}
    assert not any(found.values()), found


@pytest.mark.parametrize("cutoffs", [(), (4, 7)], ids=["plain", "adaptive"])
@each_kind
def test_no_product_in_what_runs(kind, cutoffs):
    numba, numpy = (products_in_a_step(make(kind, ops, cutoffs=cutoffs, hard=False)) for ops in (NUMBA, NUMPY))
    assert numba == set()
    assert {"linear_forward", "linear_backward", "attention_forward", "attention_backward"} <= numpy
