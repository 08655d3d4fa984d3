"""Where the tests of the CUDA kernels run: on the GPU that is here, or on the emulator.

A process can do only one of both. Every test that takes `place` is marked `gpu` on a GPU, and `slow` on the emulator.
"""

import gc

import pytest

from ..compare import GPU

# Numba makes millions of objects for a kernel: a tenth of the time went into looking for cycles among them.
gc.set_threshold(20_000, 20, 20)

if GPU is None:
    collect_ignore_glob = ["test_*.py", "emulator/test_*.py"]
PLACE, MARK = ("gpu", pytest.mark.gpu) if GPU == "cuda" else ("emulator", pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # after tests that are not selected have gone
def pytest_collection_modifyitems(items):
    """Put what only compiles kernels in the middle.

    Of two workers the second begins there, while the first one compiles the emulator, which both need after that.
    """
    first = [item for item in items if item.path.name == "test_compiled.py"]
    others = [item for item in items if item not in first]
    middle = len(items) // 2
    items[:] = [*others[:middle], *first, *others[middle:]]


def pytest_generate_tests(metafunc):
    """Each test for the place of this process."""
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", [pytest.param(PLACE, marks=MARK)])


@pytest.fixture
def emulated():
    """The emulator; skips the test on a GPU."""
    if GPU == "cuda":
        pytest.skip("only the emulator checks every access")
    from tinyprune.kernels.cuda.emulator.driver import emulator

    return emulator()


@pytest.fixture(params=[False, True], ids=["first to last", "last to first"])
def both_orders(request, monkeypatch):
    """On the emulator: in which order blocks and warps are executed."""
    if request.param:
        monkeypatch.setattr(request.getfixturevalue("emulated"), "backwards", True)


@pytest.fixture(params=[False, True], ids=["rounded", "fused"])
def both_roundings(request, monkeypatch):
    """On the emulator: whether products become multiply-adds, as they may on a GPU."""
    if not request.param:
        yield
        return
    monkeypatch.setattr(request.getfixturevalue("emulated"), "fused", True)
    from tinyprune.kernels.cuda.device.jit import KERNELS

    for load_again in (True, False):
        for kernel in KERNELS:
            vars(kernel).pop("compiled", None)
        if load_again:
            yield
