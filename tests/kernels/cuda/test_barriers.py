"""No barrier is there in vain: without it, the quick test of its module fails."""

import inspect
from importlib import import_module
from types import ModuleType

import pytest

from tinyprune.kernels.cuda.device.jit import KERNELS

from . import turns
from .checks import CHECKS
from .modules import all_modules

BARRIER = "cuda.syncthreads()"


def source_lines(name):
    """Of a module, with line ends; its name is relative to `tinyprune.kernels.cuda`."""
    return inspect.getsource(import_module(f".{name}", "tinyprune.kernels.cuda")).splitlines(keepends=True)


def barriers(name):
    """Lines that are barriers, from 0."""
    return [n for n, line in enumerate(source_lines(name)) if line.strip().startswith(BARRIER)]


def without(name, line):
    """The module made anew from a source without the barrier in this line; None leaves all in."""
    lines, known = source_lines(name), len(KERNELS)
    if line is not None:
        lines[line] = lines[line].replace(BARRIER, "pass")
    copy = ModuleType(import_module(f".{name}", "tinyprune.kernels.cuda").__name__)
    exec(compile("".join(lines), f"{name} without line {line}", "exec"), copy.__dict__)
    del KERNELS[known:]  # they are not kernels of the package
    return copy


def test_every_module_with_barriers_has_its_check():
    assert {name for name in all_modules() if barriers(name)} == set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_with_all_barriers(place, simulated, both_orders, name):
    CHECKS[name](without(name, None))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), [(name, line) for name in CHECKS for line in barriers(name)])
def test_a_missing_barrier_is_noticed(place, simulated, monkeypatch, name, line):
    mutant, noticed = without(name, line), False
    for order in turns.ORDERS:
        monkeypatch.setattr(turns, "order", order)
        try:
            CHECKS[name](mutant)
        except AssertionError:
            noticed = True
            break
    assert noticed, f"{name} does without the barrier in line {line + 1}"
