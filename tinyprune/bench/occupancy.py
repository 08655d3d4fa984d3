"""How many warps of a kernel a multiprocessor holds at a time, at most: its theoretical occupancy.

A multiprocessor (SM) hides the wait for memory by turning to another warp, of 32 threads. How many it can turn to is
bounded by what a block of the kernel takes of it:

    warps             64
    blocks            32
    registers         65,536, a quarter of them for each of its 4 parts; a warp takes 32 · registers, rounded up to 256
    shared memory     164 KiB (8.0) or 228 KiB (9.0); a block takes 1 KiB more than it asks for, rounded up to 128 bytes

The limits are NVIDIA's: "Technical Specifications per Compute Capability" in the CUDA C++ Programming Guide. How warps
and blocks are rounded is in cuda_occupancy.h of the CUDA toolkit, with whose results these have been compared.

More is not always better: a kernel that has enough to do between two loads needs few warps.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32  # threads
WARPS, BLOCKS = 64, 32  # of a multiprocessor
REGISTERS, PARTS, REGISTER_UNIT = 65536, 4, 256
SHARED_UNIT, SHARED_RESERVED = 128, 1024  # bytes
SHARED = {"8.0": 164 * 1024, "9.0": 228 * 1024}  # bytes of a multiprocessor, by compute capability


class Occupancy(NamedTuple):
    """Warps of a multiprocessor that a kernel can fill, at most, and what keeps it from more (None if all)."""

    warps: int
    limited_by: str | None


def round_up(n: int, unit: int) -> int:
    """The next multiple."""
    return -(-n // unit) * unit


def occupancy(capability: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of a kernel with so many threads in a block, registers for each of them, and shared memory of a block.

    Args:
        capability: "8.0" or "9.0".
    """
    warps = -(-threads // WARP)
    of_a_warp = round_up(registers * WARP, REGISTER_UNIT)
    # a launch is refused unless the registers were there for as many warps in each part as in the fullest
    fits = of_a_warp * round_up(warps, PARTS) <= REGISTERS
    blocks = {
        "warps": WARPS // warps,
        "blocks": BLOCKS,
        "registers": REGISTERS // PARTS // of_a_warp * PARTS // warps if fits else 0,
        "shared memory": SHARED[capability] // round_up(shared_bytes + SHARED_RESERVED, SHARED_UNIT),
    }
    fewest = min(blocks.values())
    limits = " and ".join(name for name, n in blocks.items() if n == fewest)
    return Occupancy(fewest * warps, None if fewest * warps == WARPS else limits)
