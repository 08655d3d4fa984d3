"""The GPU's own code of a compiled kernel (SASS), as NVIDIA's nvdisasm prints it: `pip install nvidia-cuda-nvdisasm`.

A GPU with nothing else to wait for issues an instruction in every cycle, so the share of multiply-adds (FFMA) in the
loops that compute bounds the share of its arithmetic that a kernel can reach.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*);")
LABEL = re.compile(r"(\.L_x_\d+)")
COMPUTES = 32  # multiply-adds that a loop has at least, if it is there to compute; that for delta runs once a block


@cache
def nvdisasm() -> str | None:
    """Return the path of the program; None if it is not installed."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return None
    return shutil.which("nvdisasm") or find_nvidia_binary_utility("nvdisasm")


def disassembled(cubin: bytes) -> str | None:
    """Return a kernel's SASS; None without nvdisasm."""
    if nvdisasm() is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.run([nvdisasm(), "-c", "-ndf", path], capture_output=True, text=True, check=True).stdout


def loop_shares(sass: str) -> list[float]:
    """Return the share of FFMA among the instructions of each innermost loop that computes, in their order."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if found := INSTRUCTION.search(line):
            names.append(found[1])
            target = LABEL.search(found[2]) if found[1] == "BRA" else None
            if target and target[1] in labels:  # a branch to what came before it
                loops.append((labels[target[1]], len(names)))
        elif found := LABEL.match(line.strip()):
            labels[found[1]] = len(names)
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    counts = [(names[a:b].count("FFMA"), b - a) for a, b in inner]
    return [multiply_adds / size for multiply_adds, size in counts if multiply_adds >= COMPUTES]
