"""What a benchmark ran on, in a line."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from tinyprune.bench.workers import HOLD_BLAS_BACK
from tinyprune.kernels.gpu import driver_version, gpu_name


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instruction_set() -> str:
    """The widest vectors that Linux reports of an x86 processor, or nothing."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return ""
    return next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")


def blas_name() -> str:
    """The BLAS that NumPy was built with, and what the environment makes of it."""
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    held = [f"{name}={os.environ[name]}" for name in HOLD_BLAS_BACK if name in os.environ]
    without = f" (as a peer without {', '.join(held)}, which are set)" if held else ""
    return f"{blas['name']} {blas['version']}{without}"


def gpu_and_driver() -> str:
    """The GPU's name, and the newest CUDA that its driver knows."""
    return f"{gpu_name()}, driver for CUDA {'.'.join(map(str, driver_version() or ()))}, "


def describe_machine(threads: int, packages: tuple[str, ...], gpu: bool = False) -> str:
    """Processor, threads, system, versions; before them the GPU, if it was one that computed."""
    name = f"{gpu_and_driver() if gpu else ''}{processor_name()}"
    cores = f"{processors()} processors"
    vectors = f" with {instruction_set()}" if instruction_set() else ""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("numpy", *packages))
    python = f"Python {platform.python_version()}"
    return f"{name}{vectors}, {cores}, {threads} threads, {platform.system()}, {python}, {versions}, BLAS {blas_name()}"
