"""Theoretical occupancy, against numbers that NVIDIA's own cuda_occupancy.h gave (toolkit 13.0)."""

import pytest

from tinyprune.bench.kernel_resources import Occupancy, occupancy


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared_bytes", "expected"),
    [
        ("8.0", 256, 32, 0, (64, None)),
        ("8.0", 256, 33, 0, (48, "registers")),  # 33 · 32 is rounded up to 5 · 256
        ("8.0", 128, 255, 0, (8, "registers")),
        ("8.0", 96, 40, 0, (48, "registers")),
        ("8.0", 32, 16, 0, (32, "blocks")),
        ("8.0", 1024, 64, 0, (32, "registers")),
        ("8.0", 1024, 65, 0, (0, "registers")),  # such a block cannot be launched at all
        ("8.0", 768, 24, 0, (48, "warps")),
        ("8.0", 768, 40, 0, (48, "warps and registers")),
        ("8.0", 256, 32, 48 * 1024, (24, "shared memory")),
        ("9.0", 256, 32, 48 * 1024, (32, "shared memory")),
        ("8.0", 256, 32, 20 * 1024 - 1024, (64, None)),
        ("8.0", 256, 32, 20 * 1024 - 1023, (64, None)),
        ("8.0", 256, 32, 20 * 1024 - 1024 + 513, (56, "shared memory")),
    ],
)
def test_occupancy(capability, threads, registers, shared_bytes, expected):
    assert occupancy(capability, threads, registers, shared_bytes) == Occupancy(*expected)
