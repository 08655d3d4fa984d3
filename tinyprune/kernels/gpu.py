"""Find out whether kernels can run on a GPU of this machine, and if not why.

Importing this module imports neither Numba nor CUDA. Every message is one line that says what to install or do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib import metadata
from typing import Any

from tinyprune.errors import UsageError, install_command


def load_driver() -> ctypes.CDLL | None:
    """Load NVIDIA's driver; return None if none is installed."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def ask_driver(function: str, *arguments: object) -> bool:
    """Call a function of NVIDIA's driver; return whether there is one, with a GPU, and the call succeeded."""
    driver = load_driver()
    return driver is not None and not driver.cuInit(0) and not getattr(driver, function)(*arguments)


def gpu_present() -> bool:
    """Ask the driver whether there is a GPU."""
    count = ctypes.c_int(0)
    return ask_driver("cuDeviceGetCount", ctypes.byref(count)) and count.value > 0


def gpu_name() -> str:
    """Return the name of the first GPU, or an empty string without one."""
    name = ctypes.create_string_buffer(256)
    if not ask_driver("cuDeviceGetName", name, len(name), 0):
        return ""
    return name.value.decode()


def gpu_memory() -> float:
    """Return how many bytes of memory the first GPU has; infinity without one."""
    size = ctypes.c_size_t(0)
    if not ask_driver("cuDeviceTotalMem_v2", ctypes.byref(size), 0):
        return float("inf")
    return float(size.value)


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports, such as (13, 0), or None without a driver or a GPU."""
    version = ctypes.c_int(0)
    if not ask_driver("cuDriverGetVersion", ctypes.byref(version)):
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
    """Return one line that says why kernels cannot run here and what to install or do; None if they can."""
    instead = "or use --backend numba, or cuda-emulated, which needs no GPU"
    if load_driver() is None:
        return f"there is no NVIDIA driver here; install your GPU's from nvidia.com/drivers, {instead}"
    if not gpu_present():
        return f"the NVIDIA driver finds no GPU; see what nvidia-smi says and CUDA_VISIBLE_DEVICES holds, {instead}"
    driver, toolkit = driver_version() or (0, 0), toolkit_version()
    known = f"the NVIDIA driver knows CUDA {driver[0]}.{driver[1]} at most"
    if driver < (12, 0):
        return f"{known}, and 12.0 is needed; update it from nvidia.com/drivers, {instead}"
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed: {fitting_extra()}"
    if toolkit is not None and driver[0] < toolkit[0]:
        here = f"the CUDA toolkit installed here is {toolkit[0]}.{toolkit[1]}"
        return f"{known}, and {here}: {fitting_extra()}, or update the driver from nvidia.com/drivers"
    return None


def explained(error: Exception) -> UsageError | None:
    """Explain an error of the toolkit, from compiling a kernel or opening the driver; None for one of another kind."""
    said = " ".join(str(error).split())
    if type(error).__name__ in {"NvvmSupportError", "NvvmError", "CudaSupportError", "DynamicLibNotFoundError"}:
        return UsageError(f"the CUDA toolkit cannot be used ({said}): {fitting_extra()}")
    if type(error).__name__ == "CCSupportError":
        return UsageError(
            f"this GPU is too old for the CUDA toolkit ({said}): an older one may do, "
            f"{install_command('cuda12')}, or use --backend numba"
        )
    if "Can't use arch-specific" in said:
        return UsageError(f"this GPU is newer than the CUDA toolkit ({said}): update numba-cuda and the toolkit")
    return None
