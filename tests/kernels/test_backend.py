"""Backends: every operation is there, and what a backend lacks is the textbook's."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import settings, write_text

from tinyprune import kernels, ops
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.ops.engine import Engine
from tinyprune.training.checkpoints import load_checkpoint


def function(operation):
    """The function itself, which a composition's engine is bound to."""
    return getattr(operation, "__func__", operation)


def test_numpy_is_the_textbook():
    backend = get_backend("numpy")
    assert type(backend) is Engine and backend.takes_complex
    for name in ("numpy", "numba"):  # what is known of them before they are made
        made = get_backend(name)
        assert made.name == name and not made.on_device and not BACKENDS[name].on_device
    for name in ops.OPERATIONS:
        assert function(getattr(backend, name)) is function(getattr(ops, name)), name
    x = object()
    assert backend.to_device(x) is x and backend.to_host(x) is x and backend.compiling is None


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_an_engine_has_no_public_name_but_those_of_the_textbooks_engine(folder):
    """Otherwise a kernel whose name is misspelt would never be called. The page is read, as CUDA may not be here."""
    page = Path(kernels.__file__).parent / folder / "engine.py"
    body = ast.parse(page.read_text("utf-8")).body
    engines = [node for node in body if isinstance(node, ast.ClassDef)]
    assert len(engines) >= 2
    for engine in engines:
        assigned = [node.targets[0].id for node in engine.body if isinstance(node, ast.Assign)]
        names = assigned + [node.name for node in engine.body if isinstance(node, ast.FunctionDef)]
        unknown = [name for name in names if not name.startswith("_") and not hasattr(Engine, name)]
        assert names and not unknown, f"{engine.name} defines {unknown}, which {Engine.__name__} has not"


def without_numba(*arguments: str) -> subprocess.CompletedProcess:
    program = "import sys; sys.modules['numba'] = None\n"
    program += "from tinyprune.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_without_numba_numpy_computes_and_it_is_said_once(tmp_path):
    run = str(tmp_path / "run")
    done = without_numba("train", run, "--corpus", str(write_text(tmp_path)), *settings(steps=2))
    said = [line for line in done.stderr.splitlines() if "Numba" in line]
    assert (done.returncode, len(said)) == (0, 1), done.stderr
    assert said[0] == "tinyprune: Numba is not installed: NumPy computes in its place, many times slower"
    assert load_checkpoint(f"{run}/train.safetensors")[1]["finished"]
    # Asked for, it is missed.
    done = without_numba("eval", run, "--backend", "numba")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the numba backend cannot run: Numba is not installed: python -m pip install numba, or use" in done.stderr
    records = json.loads(without_numba("list", "backends", "--json").stdout)
    listed = {record["backend"]: record for record in records}
    assert not listed["numba"]["usable here"] and "pip install numba" in listed["numba"]["problem"]


def test_a_numba_that_does_not_fit_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr("tinyprune.kernels.backend.find_spec", lambda name: name)
    with pytest.raises(UsageError, match=r"the numba backend cannot run: .*; update Numba, or use --backend numpy"):
        get_backend("numba")


def test_numba_has_every_heavy_primitive_with_the_textbooks_signature():
    backend, compiled = get_backend("numba"), set()
    for name in ops.OPERATIONS:
        given = getattr(ops, name), getattr(backend, name)
        if function(given[0]) is not function(given[1]):
            signatures = (inspect.signature(f).parameters.values() for f in given)
            expected, got = ([(p.name, p.kind, p.default) for p in own if p.name != "precision"] for own in signatures)
            assert got == expected, name
            compiled.add(name)
    # NumPy computes copies of rows and slices, views, a few numbers for each head, and what is new
    assert len(compiled) >= 29 and backend.compiling is not None
