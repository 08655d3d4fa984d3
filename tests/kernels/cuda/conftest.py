"""Where the tests of the CUDA kernels run: on the GPU that is here, or in Numba's simulator.

A process can do only one of both, since Numba decides when it is imported (tests/conftest.py). So every test that
takes `place` is there twice, and one of the two is skipped, saying why.
"""

import importlib.util

import pytest

from tinyprune.kernels.gpu import gpu_present

if importlib.util.find_spec("numba.cuda") is not None:
    from tinyprune.kernels.cuda.jit import SIMULATED

    from . import tensor_core, turns
    from .attention_case import SMALL, installed

    if SIMULATED:
        turns.install()
        tensor_core.install()
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_generate_tests(metafunc):
    """Each test for both places."""
    if "place" in metafunc.fixturenames:
        places = ["simulator", pytest.param("gpu", marks=pytest.mark.gpu)]
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request):
    """Skips the test unless this process computes in this place."""
    if request.param == "gpu" and SIMULATED:
        pytest.skip("there is a GPU, but NUMBA_ENABLE_CUDASIM=1" if gpu_present() else "no NVIDIA GPU here")
    if request.param == "simulator" and not SIMULATED:
        pytest.skip("runs on the GPU; in the simulator with NUMBA_ENABLE_CUDASIM=1")
    return request.param


@pytest.fixture(autouse=True)
def small_tiles():
    """In the simulator attention has small tiles: those in use are for more numbers than it gets through."""
    with installed(SMALL if SIMULATED else {}):
        yield


@pytest.fixture(params=["first to last", "last to first"])
def both_orders(request, monkeypatch):
    """In the simulator: in which order the threads of a block take their turns."""
    monkeypatch.setattr(turns, "order", request.param)
