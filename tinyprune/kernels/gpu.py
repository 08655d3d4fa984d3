"""Find out whether there is a GPU and whether kernels can be compiled for it, without Numba's CUDA part.

Importing this module imports neither Numba nor anything of CUDA. Messages are one line and say what to install or do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn
from unittest import mock

from tinyprune.errors import TinypruneError, UsageError, install_command
from tinyprune.kernels.sass import disassembled, loop_shares

FIRST = (8, 0)  # compute capability that kernels are written for; the linker makes them those of newer GPUs
COMPILED = {  # patterns in what nvJitLink reports
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
}


def load_driver() -> ctypes.CDLL | None:
    """Load NVIDIA's driver; return None if none is installed."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def gpu_present() -> bool:
    """Ask the driver whether there is a GPU. (Numba's simulator would always say yes.)"""
    driver = load_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0


def gpu_name() -> str:
    """Return the name of the first GPU, or an empty string without one."""
    driver, name = load_driver(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetName(name, len(name), 0):
        return ""
    return name.value.decode()


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports, such as (13, 0), or None without a driver."""
    driver, version = load_driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def linker() -> Any:
    """Return NVIDIA's linker as a module of `cuda.bindings`; None if it cannot be loaded here."""
    try:
        from cuda.bindings import nvjitlink

        nvjitlink.version()
    except Exception:  # without the package, without the library, with another's library: errors of many kinds
        return None
    return nvjitlink


def linker_version() -> str:
    """Return the version of nvJitLink, such as 13.0."""
    return ".".join(map(str, linker().version()))


def what_is_missing() -> str | None:
    """Return one line that says why nothing can be compiled here and what to install; None if it can."""
    if importlib.util.find_spec("numba_cuda") is None:
        return f"the package numba-cuda is not installed: {install_command('cuda')}"
    if linker() is None:
        return f"NVIDIA's linker nvJitLink is not installed: {install_command('cuda')}"
    return None


def fitting_extra() -> str:
    """Return the command that installs the CUDA packages for this machine's driver."""
    version = driver_version()
    if version is None:
        return f"{install_command('cuda')} (for a driver of CUDA 13; the extra cuda12 for one of CUDA 12)"
    return install_command("cuda" if version >= (13, 0) else "cuda12")


def toolkit_version() -> tuple[int, int] | None:
    """Return the version of the installed CUDA packages, such as (13, 0).

    None without such a package; there may still be a toolkit from elsewhere. If not, see `explained`.
    """
    for package in ("cuda-toolkit", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12"):
        try:
            major, minor, *_ = metadata.version(package).split(".")
        except metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


def why_unusable() -> str | None:
    """Return one line that says why kernels cannot run here and what to install or do; None if they can.

    In Numba's simulator they always can.
    """
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return None
    instead = "or use --backend numba"
    if load_driver() is None:
        return f"there is no NVIDIA driver here; install the one for your GPU from nvidia.com/drivers, {instead}"
    driver = driver_version()
    if not gpu_present():
        return f"the NVIDIA driver finds no GPU; see what nvidia-smi says and CUDA_VISIBLE_DEVICES holds, {instead}"
    if driver is not None and driver < (12, 0):
        return (
            f"the NVIDIA driver knows CUDA {driver[0]}.{driver[1]} at most, and 12.0 is needed; update it from "
            f"nvidia.com/drivers, {instead}"
        )
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed: {fitting_extra()}"
    toolkit = toolkit_version()
    if driver is not None and toolkit is not None and driver[0] < toolkit[0]:
        return (
            f"the NVIDIA driver knows CUDA {driver[0]}.{driver[1]} at most, and the CUDA toolkit installed here is "
            f"{toolkit[0]}.{toolkit[1]}: {fitting_extra()}, or update the driver from nvidia.com/drivers"
        )
    return None


def check_usable() -> None:
    """Raise UsageError, one line, unless kernels can run here, on a GPU or in the simulator."""
    reason = why_unusable()
    if reason is not None:
        raise UsageError(f"the cuda backend cannot run: {reason}")


def raise_explained(error: Exception) -> NoReturn:
    """Raise the explanation of a GPU's error, see `explained`, or the error itself if there is none."""
    meaning = explained(error)
    if meaning is None:
        raise error
    raise meaning from error


def explained(error: Exception) -> TinypruneError | MemoryError | None:
    """Explain an error from compiling or launching a kernel, or from allocating or copying memory.

    Returns None for an error of another kind.
    """
    said = " ".join(str(error).split())
    if "UNSUPPORTED_PTX" in said or "unsupported toolchain" in said:
        return UsageError(
            f"the NVIDIA driver is older than the CUDA toolkit that compiled a kernel: {fitting_extra()}, "
            "or update the driver from nvidia.com/drivers"
        )
    if type(error).__name__ in {"NvvmSupportError", "NvvmError", "CudaSupportError", "DynamicLibNotFoundError"}:
        return UsageError(f"the CUDA toolkit cannot be used ({said}): {fitting_extra()}")
    if type(error).__name__ == "CCSupportError":
        return UsageError(
            f"this GPU is too old for the CUDA toolkit ({said}): an older one may do, "
            f"{install_command('cuda12')}, or use --backend numba"
        )
    if "Can't use arch-specific" in said:
        return UsageError(f"this GPU is newer than the CUDA toolkit ({said}): update numba-cuda and the toolkit")
    if type(error).__name__ in {"CUDAError", "CudaAPIError"}:  # from cuda.core and Numba, without a common base class
        return (
            MemoryError(f"the GPU has none left ({said})")
            if "OUT_OF_MEMORY" in said
            else TinypruneError(f"the GPU has failed: {said}")
        )
    return None


@contextmanager
def pretended_gpu(capability: tuple[int, int]) -> Iterator[None]:
    """Answer for a GPU when Numba asks for its capability, which it does for kernels that call functions."""
    stand_in = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: stand_in):
        yield


class Compiled(NamedTuple):
    """A kernel, compiled for one kind of GPU."""

    symbol: str  # Numba's name for it has module, types and more, in 300 letters
    cubin: bytes  # what the driver loads
    report: str  # the linker's


def compiled(kernel: Any, signature: Any, capability: tuple[int, int]) -> Compiled:
    """Compile a kernel for a compute capability; no GPU is needed.

    Numba hands LLVM's code to nvJitLink, which optimises it and makes the GPU's own. (By way of PTX, three of our
    kernels would spill registers.)

    Args:
        kernel: a function, or the result of `cuda.jit`. Its attribute `launch_bounds`, if any, goes to the compiler.
        signature: its types, `numba.void(…)`.
        capability: such as (9, 0).

    Raises:
        TinypruneError: if the linker refuses the kernel; with its message.
    """
    function = getattr(kernel, "py_func", kernel)
    code = llvm_code(function, signature, min(capability, FIRST))
    cubin, report = linked(code, function.__name__, capability)
    return Compiled(re.search(r"entry function '(\w+)'", report)[1], cubin, report)


def compile_kernel(kernel: Any, signature: Any, capability: tuple[int, int]) -> dict[str, Any]:
    """Compile a kernel as `compiled` does, and return a record of what came of it.

    Returns:
        `kernel`, `capability` and `ptx`; from the linker's report a thread's registers, a block's bytes of shared
        memory, and the bytes of a thread's stack and of spilled registers; `ffma`, the lowest of `sass.loop_shares`,
        None without nvdisasm or such loops.
    """
    function = getattr(kernel, "py_func", kernel)
    name, made = function.__name__, compiled(kernel, signature, capability)
    code = llvm_code(function, signature, min(capability, FIRST))
    ptx = linked(code, name, capability, ptx=True)[0].rstrip(b"\0").decode()
    found = {key: re.search(pattern, made.report) for key, pattern in COMPILED.items()}
    numbers = {key: int(match[1]) if match else 0 for key, match in found.items()}
    about = {"kernel": name, "capability": f"{capability[0]}.{capability[1]}"}
    sass = disassembled(made.cubin)
    numbers["ffma"] = None if sass is None else min(loop_shares(sass), default=None)
    return about | numbers | {"ptx": ptx.replace(re.search(r"\.entry (\w+)", ptx)[1], name)}


@lru_cache(4)  # one kernel after the other is compiled for several GPUs
def llvm_code(function: Any, signature: Any, capability: tuple[int, int]) -> bytes:
    """Return LLVM's code of a kernel, for GPUs of this compute capability or a newer one."""
    from numba import cuda

    bounds = getattr(function, "launch_bounds", None)
    options = {"device": False, "abi": "numba", "output": "ltoir", "launch_bounds": bounds}
    with pretended_gpu(capability):
        return cuda.compile(function, signature, cc=capability, **options)[0]


def linked(code: bytes, name: str, capability: tuple[int, int], ptx: bool = False) -> tuple[bytes, str]:
    """Make the cubin of a kernel, or its PTX; return it and the linker's report.

    Raises TinypruneError with its message if it refuses.
    """
    nvjitlink, architecture = linker(), f"-arch=sm_{capability[0]}{capability[1]}"
    options = [architecture, "-lto", *(["-ptx"] if ptx else ["-verbose"])]
    handle = nvjitlink.create(len(options), options)
    kind = "ptx" if ptx else "cubin"
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), name)
        nvjitlink.complete(handle)
        result = bytearray(getattr(nvjitlink, f"get_linked_{kind}_size")(handle))
        getattr(nvjitlink, f"get_linked_{kind}")(handle, result)
        report = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, report)
    except nvjitlink.nvJitLinkError as error:
        said = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, said)
        lines = bytes(said).rstrip(b"\0").decode(errors="replace").splitlines()
        errors = [line for line in lines if "error" in line or "fatal" in line] or lines or [str(error)]
        raise TinypruneError(f"nvJitLink refused {name} for {architecture}: {' '.join(errors)}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(result), bytes(report).rstrip(b"\0").decode(errors="replace")
