"""Where the tests of the CUDA kernels run: on the GPU that is here, or in Numba's simulator.

A process can do only one of both, since Numba decides when it is imported (tests/conftest.py). Every test that takes
`place` is marked `gpu` where it runs on a GPU, and `slow` in the simulator.
"""

import importlib.util

import pytest

if importlib.util.find_spec("numba.cuda") is not None:
    from tinyprune.kernels.cuda.device.jit import SIMULATED

    from . import tensor_core, turns
    from .attention_case import SMALL, installed

    if SIMULATED:
        turns.install()
        tensor_core.install()
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_generate_tests(metafunc):
    """Each test for the place of this process."""
    if "place" in metafunc.fixturenames:
        place, mark = ("simulator", pytest.mark.slow) if SIMULATED else ("gpu", pytest.mark.gpu)
        metafunc.parametrize("place", [pytest.param(place, marks=mark)])


@pytest.fixture
def simulated():
    """Skips the test on a GPU."""
    if not SIMULATED:
        pytest.skip("only the simulator lets threads take turns, fills memory with NaN and checks every index")


@pytest.fixture(autouse=True)
def small_tiles():
    """In the simulator attention has small tiles: those in use are for more numbers than it gets through."""
    with installed(SMALL if SIMULATED else {}):
        yield


@pytest.fixture(params=["first to last", "last to first"])
def both_orders(request, monkeypatch):
    """In the simulator: in which order the threads of a block take their turns."""
    monkeypatch.setattr(turns, "order", request.param)
