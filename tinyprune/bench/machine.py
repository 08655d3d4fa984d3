"""What a benchmark ran on, in a line."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from tinyprune.bench.processes import HOLD_BLAS_BACK
from tinyprune.kernels.gpu import driver_version, gpu_name

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by Linux's flag, the widest first


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the processor's name, as far as the system tells, and on Linux the widest vectors of an x86 processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    flags = set(text.split())
    vectors = next((f" with {vectors}" for flag, vectors in VECTORS.items() if flag in flags), "")
    return name + vectors


def describe_machine(threads: int, packages: tuple[str, ...], gpu: bool = False) -> str:
    """Processor, threads, system, versions, and NumPy's BLAS with the environment variables that slow it down.

    If a GPU computed, its name and the newest CUDA of its driver come first.
    """
    import numpy as np

    device = f"{gpu_name()}, driver for CUDA {'.'.join(map(str, driver_version() or ()))}, " if gpu else ""
    system = f"{processors()} processors, {threads} threads, {platform.system()}, Python {platform.python_version()}"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("numpy", *packages))
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    held = [f"{name}={os.environ[name]}" for name in HOLD_BLAS_BACK if name in os.environ]
    without = f" (as a peer without {', '.join(held)}, which are set)" if held else ""
    return f"{device}{processor_name()}, {system}, {versions}, BLAS {blas['name']} {blas['version']}{without}"
