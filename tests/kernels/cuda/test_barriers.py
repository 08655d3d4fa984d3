"""No barrier is there in vain: without it, the quick test of its module fails."""

import pytest

from tinyprune.kernels.cuda.compiled import all_modules

from . import turns
from .barriers import barriers, without
from .checks import CHECKS

LINES = [(name, line) for name in CHECKS for line in barriers(name)]


def test_every_module_with_barriers_has_its_check():
    assert {name for name in all_modules() if barriers(name)} | {".ladder.cuda_matmul"} == set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_with_all_barriers(place, simulated, both_orders, name):
    CHECKS[name](without(name, None))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), LINES)
def test_a_missing_barrier_is_noticed(place, simulated, monkeypatch, name, line):
    mutant, noticed = without(name, line), []
    for order in turns.ORDERS:
        monkeypatch.setattr(turns, "order", order)
        try:
            CHECKS[name](mutant)
        except AssertionError as error:
            noticed.append(str(error))
            break
    assert noticed, f"{name} does without the barrier in line {line + 1}"
