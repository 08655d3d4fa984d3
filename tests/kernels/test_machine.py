"""The line that describes a machine beside results."""

import pytest

from tinyprune.kernels import machine
from tinyprune.kernels.machine import describe_machine

PROCESSORS = [("flags : fpu avx2\n", "A processor with AVX2, ", False)]
PROCESSORS += [("flags : avx2 avx512f avx512_bf16\n", "A processor with AVX-512, ", True)]
PROCESSORS += [("flags : avx2 avx512f avx512bw amx_bf16\n", "A processor with AVX-512, ", True)]
PROCESSORS += [("Features : asimd bf16\n", "A processor, ", True)]


@pytest.mark.parametrize(("flags", "name", "bf16"), PROCESSORS)
def test_instructions_are_read_from_linux(monkeypatch, flags, name, bf16):
    monkeypatch.setattr(machine, "cpuinfo", lambda: f"model name : A processor\n{flags}")
    assert describe_machine(1, ()).startswith(name) and machine.has_bf16() == bf16
