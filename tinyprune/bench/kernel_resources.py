"""What the compiler makes of every CUDA kernel, without a GPU: `tinyprune bench cuda --compile-only`.

    threads, registers, shared_bytes      of a block, of a thread, of a block
    stack_bytes, spilled_bytes            of a thread, in the GPU's memory: what did not fit into registers
    warps, occupancy                      that a multiprocessor holds at most, and their share of what it could hold
    limited_by                            what keeps it from more
    float64                               whether the PTX computes in float64, which most GPUs do slowly
    ffma                                  lowest share of multiply-adds in a loop that computes; none without nvdisasm
    hot                                   whether training spends its time there

The kernels are compiled by another process (`tinyprune.kernels.cuda.compiled`), in which Numba's simulator is off.

Theoretical occupancy: a multiprocessor (SM) hides the latency of memory by switching to another warp, of 32 threads.
How many it can hold is bounded by the resources that a block of the kernel takes:

    warps             64; 48 for compute capability 8.6
    blocks            32; 16 for 8.6
    registers         65,536, a quarter of them for each of its 4 parts; a warp takes 32 · registers, rounded up to 256
    shared memory     164 KiB (8.0), 100 KiB (8.6) or 228 KiB (9.0, 10.0); a block takes 1 KiB more than it asks for,
                      rounded up to 128 bytes

The limits are NVIDIA's: "Technical Specifications per Compute Capability" in the CUDA C++ Programming Guide. How warps
and blocks are rounded is in cuda_occupancy.h of the CUDA toolkit, and the tests compare with its results. More is not
always better: a kernel that has enough to do between two loads needs few warps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels.gpu import linker_version, what_is_missing
from tinyprune.progress import progress_bar
from tinyprune.tables import Record

CAPABILITIES = ("8.0", "8.6", "9.0", "10.0")  # of an A100, an RTX 30, an H100, a B200

WARP = 32  # threads
REGISTERS, PARTS, REGISTER_UNIT = 65536, 4, 256
SHARED_UNIT, SHARED_RESERVED = 128, 1024  # bytes


class Multiprocessor(NamedTuple):
    """What a multiprocessor holds at most at a time."""

    warps: int
    blocks: int
    shared: int  # bytes


HOLDS = {
    "8.0": Multiprocessor(64, 32, 164 * 1024),
    "8.6": Multiprocessor(48, 16, 100 * 1024),
    "9.0": Multiprocessor(64, 32, 228 * 1024),
    "10.0": Multiprocessor(64, 32, 228 * 1024),
}


class Occupancy(NamedTuple):
    """How many warps of a kernel a multiprocessor can hold, and what keeps it from more (None if it is full)."""

    warps: int
    limited_by: str | None


def occupancy(capability: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """The theoretical occupancy of a kernel with these threads and shared bytes of a block, registers of a thread."""

    def round_up(n: int, unit: int) -> int:
        return -(-n // unit) * unit

    holds, warps = HOLDS[capability], -(-threads // WARP)
    of_a_warp = round_up(registers * WARP, REGISTER_UNIT)
    # a launch is refused unless every part has the registers for as many warps as the fullest part
    fits = of_a_warp * round_up(warps, PARTS) <= REGISTERS
    blocks = {
        "warps": holds.warps // warps,
        "blocks": holds.blocks,
        "registers": REGISTERS // PARTS // of_a_warp * PARTS // warps if fits else 0,
        "shared memory": holds.shared // round_up(shared_bytes + SHARED_RESERVED, SHARED_UNIT),
    }
    fewest = min(blocks.values())
    limits = " and ".join(name for name, n in blocks.items() if n == fewest)
    return Occupancy(fewest * warps, None if fewest * warps == holds.warps else limits)


def compile_kernels(capabilities: Sequence[str] = CAPABILITIES, modules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Compile the kernels of these modules of `tinyprune.kernels.cuda`, by default all of them and `limits`.

    Returns the compiler's records, see `tinyprune.kernels.cuda.compiled.describe`.

    Raises:
        UsageError: if numba-cuda or nvJitLink is missing; says what to install.
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
            lines = progress_bar(process.stdout, total=count, desc="compile", unit="kernel")
            records = [json.loads(line) for line in lines]
        complaints.seek(0)
        said = complaints.read().strip()
    if process.returncode:
        _, refused, reason = f"\n{said}".partition("\nerror: ")
        last = (said.splitlines() or [f"status {process.returncode}"])[-1]
        raise TinypruneError(reason if refused else f"compiling ended with: {last}")
    return records


def as_row(record: dict[str, Any]) -> Record:
    """Turn a compiler's record into a row of the table."""
    resources = (record[name] for name in ("capability", "threads", "registers", "shared_bytes"))
    warps, limited_by = occupancy(*resources)
    same = ("module", "kernel", "capability", "threads", "registers", "shared_bytes", "stack_bytes")
    return {
        "benchmark": "cuda",
        **{name: record[name] for name in same},
        "spilled_bytes": record["spill_store_bytes"] + record["spill_load_bytes"],
        "warps": warps,
        "occupancy": warps / HOLDS[record["capability"]].warps,
        "limited_by": limited_by,
        "float64": ".f64" in record["ptx"],
        "ffma": record["ffma"],
        "hot": record["hot"],
    }


def compiled_records() -> list[Record]:
    """Compile all kernels; return the table, each row with the compilers' versions."""
    records = compile_kernels()
    compilers = f"no GPU: compiled by numba-cuda {metadata.version('numba-cuda')} and nvJitLink {linker_version()}"
    return [as_row(record) | {"machine": compilers} for record in records]
