"""The machine that computes: its processors and their instructions, and a line that describes it beside results."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from tinyprune.kernels.gpu import driver_version, gpu_name

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by Linux's flag, the widest first
# Linux's flags of products of bfloat16 numbers: x86 processors, ARM's.
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
# Environment variables that can slow OpenBLAS down.
HOLD_BLAS_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> float:
    """Return how much main memory there is; infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")


def cpuinfo() -> str:
    """Return what Linux tells of the processors; other systems tell nothing here."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def has_bf16() -> bool:
    """Return whether the processor has instructions for products of bfloat16 numbers, as far as the system tells."""
    return not BF16.isdisjoint(cpuinfo().split())


def processor_name() -> str:
    """Return the processor's name, as far as the system tells, and on Linux the widest vectors of an x86 processor."""
    text = cpuinfo()
    named = re.search(r"^model name[^:\n]*:(.*)", text, re.MULTILINE)
    name = platform.processor() or platform.machine()
    if named:
        name = named[1].strip()
    flags = set(text.split())
    vectors = next((f" with {vectors}" for flag, vectors in VECTORS.items() if flag in flags), "")
    return name + vectors


def describe_machine(threads: int, packages: tuple[str, ...], gpu: bool = False) -> str:
    """Describe the machine in a line: processor, threads, system, versions, NumPy's BLAS and what slows it down.

    If a GPU computed, its name and the newest CUDA of its driver come first.

    Args:
        threads: that compute.
        packages: that compute, beside NumPy; their versions are named.
        gpu: whether the first GPU computes.
    """
    import numpy as np

    said = [processor_name(), f"{processors()} processors", f"{threads} threads", platform.system()]
    said.append(f"Python {platform.python_version()}")
    if gpu:
        driver = ".".join(map(str, driver_version() or ()))
        said = [gpu_name(), f"driver for CUDA {driver}", *said]
    said += [f"{package} {metadata.version(package)}" for package in ("numpy", *packages)]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    said.append(f"BLAS {blas['name']} {blas['version']}")
    held = [f"{name}={os.environ[name]}" for name in HOLD_BLAS_BACK if name in os.environ]
    without = f" (as a peer without {', '.join(held)}, which are set)" if held else ""
    return ", ".join(said) + without
