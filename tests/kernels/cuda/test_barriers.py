"""No barrier is there in vain: without it, the tests of its kernel notice."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from tinyprune.kernels.backend import get_backend

from . import turns
from .barriers import barriers, without

cuda = get_backend("cuda")


MODULES = [module.name for module in pkgutil.iter_modules(cuda.__path__) if barriers(module.name)]


def check_of(name):
    """The quick test of a module, `check` in its test file."""
    return importlib.import_module(f".test_{name}", __package__).check


def test_every_module_with_barriers_has_its_check():
    assert "layernorm" in MODULES
    for name in MODULES:
        assert callable(check_of(name))


@pytest.mark.parametrize("name", MODULES)
def test_with_all_barriers(place, both_orders, name):
    if place == "gpu":
        pytest.skip("the simulator lets threads take turns, a GPU does not")
    check_of(name)(without(name, None))


@pytest.mark.parametrize(("name", "line"), [(name, line) for name in MODULES for line in barriers(name)])
def test_a_missing_barrier_is_noticed(place, monkeypatch, name, line):
    if place == "gpu":
        pytest.skip("the simulator lets threads take turns, a GPU does not")
    mutant, noticed = without(name, line), []
    for order in turns.ORDERS:
        monkeypatch.setattr(turns, "order", order)
        try:
            check_of(name)(mutant)
        except AssertionError as error:
            noticed.append(str(error))
    assert noticed, f"{Path(cuda.__path__[0]).name}/{name}.py does without the barrier in line {line + 1}"
