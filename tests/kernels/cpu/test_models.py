"""Whole models on the numba backend: the textbook's numbers, and no BLAS, whose threads would fight with Numba's.

NumPy gives matrix products to BLAS. They are looked for in the bytecode: of every function of the kernels, and of every
function of the package that really runs in a model's step, the textbook's among them.
"""

import dis
import sys
from itertools import pairwise
from pathlib import Path
from types import CodeType

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


def products(code: CodeType) -> set[str]:
    """What in the code itself, without what it calls, NumPy would give to BLAS: operators, and names after a dot.

    An engine's product is none of those.
    """
    steps = list(dis.get_instructions(code))
    operators = {i.argrepr for i in steps if i.opname == "BINARY_OP"}
    after_a_dot = [
        (before.argval, i.argval) for before, i in pairwise(steps) if i.opname in ("LOAD_ATTR", "LOAD_METHOD")
    ]
    names = {name for owner, name in after_a_dot if owner not in ("ops", "products")}
    return operators & {"@", "@="} | names & CALLS


def functions_in(code: CodeType) -> list[CodeType]:
    """The code, and that of every function in it."""
    return [code, *(inner for const in code.co_consts if isinstance(const, CodeType) for inner in functions_in(const))]


def functions_run_by(model) -> set[CodeType]:
    """Those of the package that a step takes, and the probabilities of every word; of kernels at most the outermost."""
    seen = set()

    def notice(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        step(model)
        model.log_probabilities(np.zeros((2, model.config.D)))
    finally:
        sys.setprofile(before)
    return seen


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a @ b", {"@"}),
        ("a @= b", {"@="}),
        ("def f(a):\n    return lambda b: a.T @ b", {"@"}),
        ("np.dot(a, b) + a.dot(b)", {"dot"}),
        ("np.matmul(a, b, out=np.einsum('ij->ji', c))", {"matmul", "einsum"}),
        ("np.linalg.norm(a)", {"linalg"}),
        ("matmul(a, b) * linear.rows(a) + ops.matmul(a, b) + dot", set()),
    ],
)
def test_products_are_noticed(source, found):
    assert set().union(*map(products, functions_in(compile(source, "", "exec")))) == found


@pytest.mark.parametrize("path", sorted(Path(cpu.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_no_product_in_the_source_of_a_kernel(path):
    code = compile(path.read_text(encoding="utf-8"), path.name, "exec")
    assert {f.co_qualname: products(f) for f in functions_in(code) if products(f)} == {}


@pytest.mark.parametrize("cutoffs", [(), (4, 7)], ids=["plain", "adaptive"])
@each_kind
def test_no_product_in_what_runs(kind, cutoffs):
    numba, numpy = (
        {f.co_qualname for f in functions_run_by(make(kind, backend, cutoffs=cutoffs, hard=False)) if products(f)}
        for backend in (NUMBA, NUMPY)
    )
    assert numba == set()
    assert {"linear_forward", "linear_backward", "attention_forward", "attention_backward"} <= numpy
