"""What is said when there is no GPU, no driver, a wrong one, or no toolkit; and that nothing is disturbed by it."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tinyprune.errors import UsageError, install_command
from tinyprune.kernels import gpu
from tinyprune.kernels.backend import get_backend


def driver_of(version, gpus=1):
    """A driver that knows CUDA up to `version`."""

    def number(value):
        return lambda pointer: setattr(pointer._obj, "value", value)

    return SimpleNamespace(
        cuInit=lambda flags: 0 if gpus else 100, cuDeviceGetCount=number(gpus), cuDriverGetVersion=number(version)
    )


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine: its driver (None for none), whether numba-cuda is installed, and the toolkit's version."""

    def pretend(driver, numba_cuda=True, toolkit=(13, 0)):
        monkeypatch.setattr(gpu, "load_driver", lambda: driver)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if numba_cuda else None)
        monkeypatch.setattr(gpu, "toolkit_version", lambda: toolkit)

    return pretend


def test_all_is_well(machine):
    for version, toolkit in ((13010, (13, 0)), (12040, (12, 9)), (13000, (12, 9)), (13000, None)):
        machine(driver_of(version), toolkit=toolkit)
        assert gpu.why_unusable() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((None,), "there is no NVIDIA driver here; install your GPU's from nvidia.com/drivers, or use"),
        ((driver_of(13000, gpus=0),), "the NVIDIA driver finds no GPU; see what nvidia-smi says"),
        ((driver_of(13000), False), f"numba-cuda is not installed: {install_command('cuda')}"),
        ((driver_of(12080), False), f"numba-cuda is not installed: {install_command('cuda12')}"),
        ((driver_of(11080),), "the NVIDIA driver knows CUDA 11.8 at most, and 12.0 is needed; update it from"),
        ((driver_of(12080),), "knows CUDA 12.8 at most, and the CUDA toolkit installed here is 13.0: "),
        ((driver_of(12080),), f"13.0: {install_command('cuda12')}, or update the driver"),
    ],
)
def test_one_line_says_what_to_do(machine, given, said):
    machine(*given)
    assert said in gpu.why_unusable()
    with pytest.raises(UsageError, match="the cuda backend cannot run: ") as raised:
        get_backend("cuda")
    assert "\n" not in str(raised.value) and said in str(raised.value)


def test_nothing_of_cuda_is_touched_unasked():
    code = (
        "import sys, ctypes\n"
        "loaded, load = [], ctypes.CDLL\n"
        "ctypes.CDLL = lambda name, *rest, **more: loaded.append(name)\n"
        "import tinyprune.cli, tinyprune.kernels.backend, tinyprune.kernels.gpu\n"
        "tinyprune.kernels.backend.get_backend('numpy')\n"
        "names = [name for name in sys.modules if 'cuda' in name and not name.startswith('tinyprune.')]\n"
        "print([name for name in names if name != '_numba_cuda_redirector'], loaded, end=' ')\n"
        "print('numba' in sys.modules, end=' ')\n"
        "ctypes.CDLL = load\n"
        "import tinyprune.kernels.cpu.matmul; print('numba.cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.stdout == "[] [] False False\n", done.stderr
