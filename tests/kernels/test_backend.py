"""The door to the backends: every operation is there, and what a backend lacks comes from the textbook."""

import inspect
import sys
from types import ModuleType

import pytest

from tinyprune import ops
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import BACKENDS, get_backend, unchanged


def test_numpy_is_the_textbook():
    backend = get_backend("numpy")
    assert vars(backend) == {name: getattr(ops, name) for name in ops.__all__} | {
        "compilations": None,
        "compiling": None,
        "to_device": unchanged,
        "to_host": unchanged,
    }


def test_every_forward_has_its_backward():
    forwards, backwards = (
        {name.removesuffix(suffix) for name in ops.__all__ if name.endswith(suffix)}
        for suffix in ("_forward", "_backward")
    )
    assert forwards == backwards and len(forwards) == 17
    for name in forwards:
        *gradients, last = inspect.signature(getattr(ops, f"{name}_backward")).parameters
        assert last == "cache" and gradients and all(gradient.startswith("d") for gradient in gradients)


def test_what_a_backend_lacks_comes_from_the_textbook(monkeypatch):
    partial = ModuleType("partial")
    partial.sigmoid = lambda x: x
    partial.helper = None
    monkeypatch.setitem(sys.modules, "partial", partial)
    monkeypatch.setitem(BACKENDS, "partial", "partial")
    backend = get_backend("partial")
    assert backend.sigmoid is partial.sigmoid
    assert backend.attention_forward is ops.attention_forward
    assert set(vars(backend)) == {*ops.__all__, "compilations", "compiling", "to_device", "to_host"}


def test_each_call_gives_a_namespace_of_its_own():
    one, two = get_backend("numpy"), get_backend("numpy")
    one.sigmoid = None
    assert two.sigmoid is ops.sigmoid


@pytest.mark.parametrize("name", ["nunpy", "", "tinyprune.ops"])
def test_an_unknown_backend_is_bad_use_and_the_known_ones_are_named(name):
    with pytest.raises(UsageError, match=rf"backend must be one of .*numpy.*; got {name!r}"):
        get_backend(name)


def test_numba_has_every_heavy_operation_with_the_textbooks_signature():
    backend = get_backend("numba")
    compiled = {name for name in ops.__all__ if getattr(backend, name) is not getattr(ops, name)}
    # What is left to the textbook are a few numbers for each head, views, and one sum for the plain Transformer.
    gates = {"hard_concrete", "top_k", "l0", "head_difference", "layerwise_error", "context_backward", "positions"}
    gates |= {"adaptive_softmax_backward"}  # it finds the compiled parts in its cache
    for name in compiled:
        expected, got = (inspect.signature(getattr(module, name)).parameters for module in (ops, backend))
        # The parts of the textbook's adaptive operations are what a backend fills in.
        assert [(p.name, p.kind, p.default) for p in got.values()] == [
            (p.name, p.kind, p.default) for p in expected.values() if p.name != "parts"
        ], name
    left = {
        name for name in ops.__all__ if name.endswith(("_forward", "_backward", "_update")) and name not in compiled
    }
    assert all(any(name.startswith(gate) for gate in gates) for name in left), left
    assert backend.compilations is not None
