"""No BLAS on the numba backend, whose threads would fight with Numba's.

NumPy gives matrix products to BLAS. They are looked for in the bytecode: of every function of the kernels, and of every
function of the package that really runs in a model's step, the textbook's among them.
"""

import dis
import sys
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
from small import MODELS, small_config, small_model

import tinyprune
from tinyprune.config import GateConfig
from tinyprune.kernels import cpu
from tinyprune.kernels.backend import get_backend

CALLS = {"dot", "einsum", "inner", "linalg", "matmul", "matvec", "tensordot", "vdot", "vecdot", "vecmat"}
PACKAGE = str(Path(tinyprune.__file__).parent)


def products(code: CodeType) -> set[str]:
    """What in the code itself, without what it calls, NumPy would give to BLAS: operators, and names after a dot."""
    operators = {i.argrepr for i in dis.get_instructions(code) if i.opname == "BINARY_OP"}
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    return operators & {"@", "@="} | names & CALLS


def functions_in(code: CodeType) -> list[CodeType]:
    """The code, and that of every function in it."""
    return [code, *(inner for const in code.co_consts if isinstance(const, CodeType) for inner in functions_in(const))]


def functions_run_by(compute) -> set[CodeType]:
    """The functions of the package that `compute()` runs; of kernels at most the outermost."""
    seen = set()

    def notice(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        compute()
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
        ("matmul(a, b) * linear.rows(a) + dot", set()),
    ],
)
def test_products_are_noticed(source, found):
    assert set().union(*map(products, functions_in(compile(source, "", "exec")))) == found


@pytest.mark.parametrize("path", sorted(Path(cpu.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_no_product_in_the_source_of_a_kernel(path):
    code = compile(path.read_text(encoding="utf-8"), path.name, "exec")
    assert {f.co_qualname: products(f) for f in functions_in(code) if products(f)} == {}


def use(model):
    """A step with memory and dropout, and the probabilities of every word."""
    ids = np.random.default_rng(0).integers(0, model.config.V, (2, model.config.T))
    _, memory, _ = model.loss(ids, ids)
    _, _, cache = model.loss(ids, ids, memory, np.random.default_rng(1))
    model.backward(1.0, cache)
    model.log_probabilities(model.forward(ids)[0])


@pytest.mark.parametrize("cutoffs", [(), (4, 7)], ids=["plain", "adaptive"])
@pytest.mark.parametrize("kind", MODELS)
def test_no_product_in_what_runs(kind, cutoffs):
    dropout = {"dropout": 0.1, "dropout_attention": 0.1, "dropout_embedding": 0.1}
    config = small_config(kind, cutoffs=cutoffs, div_value=2, **dropout)
    model = small_model(config, GateConfig(hard=False))
    found = {}
    for backend in ("numpy", "numba"):
        model.ops = get_backend(backend)
        found[backend] = {f.co_qualname for f in functions_run_by(lambda: use(model)) if products(f)}
    assert found["numba"] == set()
    assert {"linear_forward", "linear_backward", "attention_forward", "attention_backward"} <= found["numpy"]
