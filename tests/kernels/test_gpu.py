"""What is said when there is no GPU, no driver, a wrong one, or no toolkit; and that nothing is disturbed by it."""

import importlib.util
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from command import refused

from tinyprune.bench.command import Options, check_options
from tinyprune.errors import UsageError, install_command
from tinyprune.kernels import gpu
from tinyprune.kernels.backend import BACKENDS, get_backend


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


KINDS = ["NvvmSupportError", "NvvmError", "CudaSupportError", "DynamicLibNotFoundError"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_toolkit_that_cannot_be_used_is_explained(machine, kind):
    machine(driver_of(12080))
    error = gpu.explained(type(kind, (ImportError,), {})("libNVVM\ncannot be found"))
    needed = install_command("cuda12")
    assert str(error) == f"the CUDA toolkit cannot be used (libNVVM cannot be found): {needed}"
    machine(None)  # nobody knows which driver it will be
    assert "for a driver of CUDA 13; the extra cuda12 for" in gpu.fitting_extra()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (type("CCSupportError", (RuntimeError,), {})("GPU compute capability 6.1"), "this GPU is too old"),
        (ValueError("Can't use arch-specific compute_130a"), "this GPU is newer than the CUDA toolkit"),
    ],
)
def test_a_gpu_that_does_not_fit_the_toolkit_is_explained(error, said):
    explained = gpu.explained(error)
    assert isinstance(explained, UsageError) and said in str(explained)
    assert str(error) in str(explained)
    assert gpu.explained(ValueError("n must be positive")) is None


def test_the_gpus_name(monkeypatch):
    def tell(buffer, *_):
        buffer.value = b"NVIDIA A100"

    named = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGetName=tell)
    for driver, expected in ((named, "NVIDIA A100"), (None, "")):
        monkeypatch.setattr(gpu, "load_driver", lambda driver=driver: driver)
        assert gpu.gpu_name() == expected


def test_a_benchmark_without_a_gpu_is_refused(machine):
    machine(None)
    said = refused(2, "bench", "step", "--backend=cuda")
    assert said.startswith("the cuda backend cannot run: there is no NVIDIA driver here")


def test_a_benchmark_with_a_pytorch_that_finds_no_gpu_is_refused(monkeypatch):
    """Our kernels can run here, it is pretended."""
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(BACKENDS, "cuda", BACKENDS["cuda"]._replace(problem=lambda: None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_options("step", Options("cuda"))
    version = re.escape(torch.__version__)
    said = f"--peers torch: PyTorch {version} finds no GPU: install one that is built for CUDA"
    with pytest.raises(UsageError, match=said):
        check_options("step", Options("cuda", peers=("torch",)))


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
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 240}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout == "[] [] False False\n", done.stderr
