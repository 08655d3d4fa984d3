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

from tinyprune.bench.occupancy import occupancy
from tinyprune.kernels.cuda.compiled import all_modules, full_name, kernels_of, module_of
from tinyprune.kernels.gpu import what_is_missing

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=f"not compiled for a GPU: {what_is_missing()}")
CAPABILITIES = ("8.0", "9.0")
SHARED_BYTES = 48 * 1024  # that a block may have without asking for more at launch
KERNELS = kernels_of(all_modules())


def outside_the_simulator(*command):
    """A Python program's output."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def problems(record):
    """What is wrong with a compiled kernel, in words; nothing if all is well."""
    ptx = record["ptx"]
    warps = occupancy(record["capability"], record["threads"], record["registers"], record["shared_bytes"]).warps
    alignments = [int(bytes) for bytes in re.findall(r"\.shared \.align (\d+)", ptx)]
    vectors = re.search(r"\b(ld|st)\.shared\.v4", ptx)
    found = {
        "computes in float64": ".f64" in ptx and not record["float64"],
        "has a stack": record["hot"] and (record["stack_bytes"] or ".local" in ptx),
        "spills registers": record["hot"] and record["spill_store_bytes"] + record["spill_load_bytes"],
        "takes too much shared memory": record["shared_bytes"] > SHARED_BYTES,
        "does not fit on a multiprocessor": not warps,
        "reads vectors of shared memory that is not aligned": vectors and not min(alignments) >= 16,
    }
    return [problem for problem, there in found.items() if there]


@pytest.mark.parametrize("module", sorted({module_of(kernel) for kernel in KERNELS}))
def test_compiled(module):
    lines = outside_the_simulator("-m", "tinyprune.kernels.cuda.compiled", *CAPABILITIES, "--modules", module)
    count, *records = map(json.loads, lines.splitlines())
    kernels = [full_name(kernel) for kernel in KERNELS if module_of(kernel) == module]
    assert count == len(records)
    assert [(r["kernel"], r["capability"]) for r in records] == [(k, c) for k in kernels for c in CAPABILITIES]
    assert {(r["kernel"], r["capability"]): problems(r) for r in records if problems(r)} == {}


@pytest.fixture(scope="module")
def planted():
    """What the compiler makes of the kernels in planted.py."""
    return json.loads(outside_the_simulator(Path(__file__).with_name("planted.py")))


def test_what_is_forbidden_is_found(planted):
    found = {name: problems(record) for name, record in planted.items() if isinstance(record, dict)}
    assert found == {
        "harmless": [],
        "double_precision": ["computes in float64"],
        "double_precision_on_purpose": [],
        "stack": ["has a stack"],
        "spills": ["has a stack", "spills registers"],
        "registers": ["does not fit on a multiprocessor"],
        "vectors": [],
    }


def test_a_vector_needs_its_alignment(planted):
    record = planted["vectors"]
    assert ".shared .align 16" in record["ptx"] and "ld.shared.v4.f32" in record["ptx"]
    record = record | {"ptx": record["ptx"].replace(".shared .align 16", ".shared .align 4")}
    assert problems(record) == ["reads vectors of shared memory that is not aligned"]


def test_too_much_shared_memory_is_refused(planted):
    said = (
        "ptxas refused shared_memory for -arch=sm_80: ptxas error : Entry function 'shared_memory' uses too much shared"
    )
    assert " ".join(planted["shared_memory"].split()).startswith(said)


def test_what_numba_cannot_compile_is_named(planted):
    assert planted["unknown_name"].startswith("Numba cannot compile __main__.unknown_name: ")
