"""`tinyprune bench cuda --compile-only`: what the compiler makes of every CUDA kernel, without a GPU.

    threads, registers, shared_bytes      of a block, of a thread, of a block
    stack_bytes, spilled_bytes            of a thread, in the GPU's memory: what did not fit into registers
    warps, occupancy                      that a multiprocessor holds at most, and their share of 64: see `occupancy.py`
    limited_by                            what keeps it from more
    float64                               whether the PTX computes in float64, which most GPUs do slowly
    hot                                   whether training spends its time there

The kernels are compiled by another process (`tinyprune.kernels.cuda.compiled`), in which Numba's simulator is off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from tqdm import tqdm

from tinyprune.bench.occupancy import WARPS, occupancy
from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels.gpu import ptxas_version, what_is_missing
from tinyprune.progress import silent
from tinyprune.tables import Record

CAPABILITIES = ("8.0", "9.0")  # of an A100 and of an H100


def compile_kernels(capabilities: Sequence[str] = CAPABILITIES, modules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The compiler's records of kernels, see `tinyprune.kernels.cuda.compiled.describe`.

    Args:
        capabilities: compute capabilities.
        modules: of `tinyprune.kernels.cuda`, in which the kernels are written; none for all, and those of `limits`.

    Raises:
        UsageError: if numba-cuda or ptxas is missing; says what to install.
        TinypruneError: if a kernel cannot be compiled.
    """
    missing = what_is_missing()
    if missing:
        raise UsageError(missing)
    command = [sys.executable, "-m", "tinyprune.kernels.cuda.compiled", *capabilities]
    command += ["--modules", *modules] if modules else ["--also", "tinyprune.bench.limits"]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        pipes = {"stdout": subprocess.PIPE, "stderr": complaints, "text": True, "encoding": "utf-8"}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            count = int(process.stdout.readline() or 0)
            lines = tqdm(process.stdout, total=count, desc="compile", unit="kernel", disable=silent())
            records = [json.loads(line) for line in lines]
        complaints.seek(0)
        said = complaints.read().strip()
    if process.returncode:
        _, refused, reason = f"\n{said}".partition("\nerror: ")
        last = (said.splitlines() or [f"status {process.returncode}"])[-1]
        raise TinypruneError(reason if refused else f"compiling ended with: {last}")
    return records


def as_row(record: dict[str, Any]) -> Record:
    """A compiler's record as a row of the table."""
    threads, registers, shared = record["threads"], record["registers"], record["shared_bytes"]
    warps, limited_by = occupancy(record["capability"], threads, registers, shared)
    return {
        "benchmark": "cuda",
        "module": record["module"],
        "kernel": record["kernel"],
        "capability": record["capability"],
        "threads": threads,
        "registers": registers,
        "shared_bytes": shared,
        "stack_bytes": record["stack_bytes"],
        "spilled_bytes": record["spill_store_bytes"] + record["spill_load_bytes"],
        "warps": warps,
        "occupancy": warps / WARPS,
        "limited_by": limited_by,
        "float64": ".f64" in record["ptx"],
        "hot": record["hot"],
    }


def compiled_records() -> list[Record]:
    """The table, each row with the compilers' names."""
    rows = [as_row(record) for record in compile_kernels()]
    compilers = f"no GPU: compiled by numba-cuda {metadata.version('numba-cuda')} and ptxas {ptxas_version()}"
    return [row | {"machine": compilers} for row in rows]
