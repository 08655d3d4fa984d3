"""Every CUDA kernel as the compiler sees it, for GPUs that are not here.

Compiling takes processes of their own, since Numba's simulator is off in them: one for each module.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyprune.kernels.gpu import what_is_missing

from .compiling import CAPABILITIES
from .modules import PACKAGE, all_modules, kernels_of

if what_is_missing() is not None:
    pytest.skip(f"not compiled for a GPU: {what_is_missing()}", allow_module_level=True)

SHARED_BYTES = 48 * 1024  # that a block may have without asking for more at launch
REGISTERS = 65536  # of a multiprocessor; a warp of 32 threads gets a multiple of 256
# kernels of attention and of large products take their operands four at a time
VECTORS = {"products.product", "attend.forward", "attend.queries", "attend.keys", "attend.distances"}


def compile_module(module):
    """The records of all kernels of a module, see `compiling`."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, Path(__file__).with_name("compiling.py"), module]
    pipes = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 1200}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent, **pipes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def problems(record):
    """What is wrong with a compiled kernel, in words; nothing if all is well."""
    ptx = record["ptx"]
    of_a_warp = -(-32 * record["registers"] // 256) * 256
    alignments = [int(bytes) for bytes in re.findall(r"\.shared \.align (\d+)", ptx)]
    vectors = re.search(r"\b(ld|st)\.shared\.v4", ptx)
    found = {
        "computes in float64": ".f64" in ptx and not record["float64"],
        "has a stack": record["stack_bytes"] or ".local" in ptx,
        "spills registers": record["spill_store_bytes"] + record["spill_load_bytes"],
        "takes too much shared memory": record["shared_bytes"] > SHARED_BYTES,
        "does not fit on a multiprocessor": of_a_warp * -(-record["threads"] // 32) > REGISTERS,
        "reads vectors of shared memory that is not aligned": vectors and not min(alignments) >= 16,
    }
    return [problem for problem, there in found.items() if there]


@pytest.mark.parametrize("module", [module for module in all_modules() if kernels_of([module])])
def test_compiled(module):
    records = compile_module(PACKAGE + module)
    names = [kernel.__name__ for kernel in kernels_of([module])]
    assert len(names) == len(set(names))
    expected = [(name, f"{major}.{minor}") for name in names for major, minor in CAPABILITIES]
    assert [(r["kernel"], r.get("capability")) for r in records] == expected, records
    assert {(r["kernel"], r["capability"]): problems(r) for r in records if problems(r)} == {}
    for record in records if module in VECTORS else ():
        # tensor cores take their numbers one by one from shared memory
        wanted = {"ld.global.v4.f32"} | ({"ld.shared.v4.f32"} if "tf32" not in record["kernel"] else set())
        assert not record["hot"] or all(instruction in record["ptx"] for instruction in wanted), record["kernel"]


def test_what_is_forbidden_is_found_and_what_cannot_be_compiled_is_named():
    planted = {record["kernel"]: record for record in compile_module("planted")[:: len(CAPABILITIES)]}
    refused = {name: record["refused"] for name, record in planted.items() if "refused" in record}
    assert {name: problems(record) for name, record in planted.items() if name not in refused} == {
        "double_precision": ["computes in float64"],
        "double_precision_on_purpose": [],
        "stack": ["has a stack"],
        "spills": ["has a stack", "spills registers"],
        "registers": ["does not fit on a multiprocessor"],
        "vectors_anywhere": ["reads vectors of shared memory that is not aligned"],
    }
    said = refused["shared_memory"]
    assert said.startswith("nvJitLink refused shared_memory for -arch=sm_80: ") and "\n" not in said
    assert "uses too much shared data" in said
    assert refused["unknown_name"].startswith("Numba cannot compile planted.unknown_name: ")
