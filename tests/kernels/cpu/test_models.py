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


def make(kind, backend, dtype=np.float64, cutoffs=(4, 7)):
    """A model with gates, dropout, and by default an adaptive softmax, if it can have one."""
    cutoffs = cutoffs if kind in ADAPTIVE else ()
    config = small_config(kind, cutoffs=cutoffs, div_value=2, **DROPOUT)
    model = small_model(config, GateConfig(hard=cutoffs != ()), dtype=dtype)
    model.ops = backend
    return model


def step(model):
    """Loss and gradients of a segment read with memory, everything drawn alike."""
    rng = np.random.default_rng(4)
    first, ids, targets = rng.integers(0, model.config.V, (3, 2, model.config.T))
    _, memory, _ = model.forward(first)
    loss, _, cache = model.loss(ids, targets, memory, rng)
    return {"loss": loss} | model.backward(0.7, cache)


@each_kind
def test_text_read_word_by_word(kind):
    model = make(kind, NUMBA)
    text = np.random.default_rng(6).integers(0, model.config.V, model.config.T)
    reader = CachedDecoder(model)
    got = np.array([reader.predict(reader.read_token(int(word))) for word in text])
    np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-12)
    model.ops = NUMPY
    np.testing.assert_allclose(got, model.log_probabilities(read(model, text[None]))[0], rtol=1e-11)


def products(source: str) -> set[str]:
    """What NumPy would give to BLAS: operators, and names after a dot, but not an engine's products."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(source))))
    dotted = [node for node in nodes if isinstance(node, ast.Attribute)]
    names = {node.attr for node in dotted if getattr(node.value, "id", None) not in ("ops", "products")}
    return names & CALLS | {"@" for node in nodes if isinstance(getattr(node, "op", None), ast.MatMult)}


def step_and_products(model) -> tuple[dict, set[str]]:
    """What `step` returns, and the package's functions with a product that it runs, probabilities of words included."""
    seen = set()

    def notice(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            seen.add(code)

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        results = step(model)
        model.log_probabilities(np.zeros((2, model.config.D), results["loss"].dtype))
    finally:
        sys.setprofile(before)
    return results, {code.co_name for code in seen if products(inspect.getsource(code))}


@pytest.mark.parametrize(("dtype", "cutoffs"), [(np.float32, ()), (np.float64, (4, 7))])
@each_kind
def test_a_step_like_the_textbooks_without_its_products(kind, dtype, cutoffs):
    got, in_numba = step_and_products(make(kind, NUMBA, dtype, cutoffs))
    expected, in_numpy = step_and_products(make(kind, NUMPY, cutoffs=cutoffs))
    assert in_numba == set()
    assert {"linear_forward", "linear_backward", "attention_forward", "attention_backward"} <= in_numpy
    assert list(got) == list(expected)
    assert ("embedding.2" in got) == (kind in ADAPTIVE and cutoffs != ())
    # Rounding goes through every layer there and back; a gradient that is truly 0 has none but that.
    largest = max(np.linalg.norm(g) for g in expected.values())
    for name, value in expected.items():
        assert got[name].dtype == dtype and got[name].shape == value.shape, name
        distance = np.linalg.norm(got[name] - value)
        assert distance <= 10 * TOLERANCE[dtype] * (np.linalg.norm(value) + 1e-2 * largest), name


def test_no_product_in_the_source_of_a_kernel():
    found = {path.name: products(path.read_text("utf-8")) for path in Path(cpu.__file__).parent.glob("*.py")}
    assert not any(found.values()), found
