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

from tinyprune.bench.kernel_resources import CAPABILITIES, as_row, compile_kernels, occupancy
from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.compiled import all_modules, kernels_of, module_of
from tinyprune.kernels.cuda.device import cubins
from tinyprune.kernels.gpu import what_is_missing

if what_is_missing() is not None:
    pytest.skip(f"not compiled for a GPU: {what_is_missing()}", allow_module_level=True)

SHARED_BYTES = 48 * 1024  # that a block may have without asking for more at launch
KERNELS = kernels_of([*all_modules(), "tinyprune.bench.limits"])
LEAST_FFMA = 0.75  # in the loops of these; known if nvdisasm is installed
# those of attention and of large products, whose operands come four at a time
VECTORS = {"products.product", "attend.forward", "attend.queries", "attend.keys", "attend.distances"}


def problems(record):
    """What is wrong with a compiled kernel, in words; nothing if all is well."""
    ptx = record["ptx"]
    warps = occupancy(record["capability"], record["threads"], record["registers"], record["shared_bytes"]).warps
    alignments = [int(bytes) for bytes in re.findall(r"\.shared \.align (\d+)", ptx)]
    vectors = re.search(r"\b(ld|st)\.shared\.v4", ptx)
    found = {
        "computes in float64": ".f64" in ptx and not record["float64"],
        "has a stack": record["stack_bytes"] or ".local" in ptx,
        "spills registers": record["spill_store_bytes"] + record["spill_load_bytes"],
        "takes too much shared memory": record["shared_bytes"] > SHARED_BYTES,
        "does not fit on a multiprocessor": not warps,
        "reads vectors of shared memory that is not aligned": vectors and not min(alignments) >= 16,
    }
    return [problem for problem, there in found.items() if there]


@pytest.mark.parametrize("module", sorted({module_of(kernel) for kernel in KERNELS}))
def test_compiled(module):
    records = compile_kernels(CAPABILITIES, [module])
    names = [kernel.__name__ for kernel in kernels_of([module])]
    assert len(names) == len(set(names))
    assert [(r["kernel"], r["capability"]) for r in records] == [(name, c) for name in names for c in CAPABILITIES]
    assert {(r["kernel"], r["capability"]): problems(r) for r in records if problems(r)} == {}
    if module in VECTORS:
        for record in records:
            # tensor cores take their numbers one by one from shared memory
            wanted = {"ld.global.v4.f32"} | ({"ld.shared.v4.f32"} if "tf32" not in record["kernel"] else set())
            assert record["ffma"] is None or record["ffma"] > LEAST_FFMA, record["kernel"]
            assert not record["hot"] or all(instruction in record["ptx"] for instruction in wanted), record["kernel"]


@pytest.fixture(scope="module")
def planted():
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, Path(__file__).with_name("planted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
        "vectors_anywhere": ["reads vectors of shared memory that is not aligned"],
    }


def test_what_cannot_be_compiled_is_named(planted):
    said = "nvJitLink refused shared_memory for -arch=sm_80: "
    refused = planted["shared_memory"]
    assert refused.startswith(said) and "uses too much shared data" in refused and "\n" not in refused
    assert planted["unknown_name"].startswith("Numba cannot compile __main__.unknown_name: ")


def test_rows_of_the_table():
    """`tinyprune bench cuda --compile-only` for one module."""
    rows = [as_row(record) for record in compile_kernels(modules=["layers.layernorm"])]
    assert [row["kernel"] for row in rows[:: len(CAPABILITIES)]] == ["normalise", "normalise_backward"]
    assert tuple(row["capability"] for row in rows[: len(CAPABILITIES)]) == CAPABILITIES
    row = rows[0]
    assert row["module"] == "layers.layernorm" and row["threads"] == 128 and row["shared_bytes"] == 4 * 128
    assert row["hot"] and not row["float64"] and row["stack_bytes"] == row["spilled_bytes"] == 0
    assert row["occupancy"] == row["warps"] / 64 and 8 <= row["registers"] <= 255
    assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())


REFUSAL = (
    "def refuse(*_):\n    raise gpu.TinypruneError('nvJitLink refused normalise: no')\ngpu.compile_kernel = refuse\n"
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (REFUSAL, "nvJitLink refused normalise: no$"),
        ("del gpu.Compiled\n", "compiling ended with: ImportError: cannot import name 'Compiled'"),
    ],
)
def test_a_kernel_that_cannot_be_compiled_ends_it_in_one_line(monkeypatch, tmp_path, change, said):
    """In the other process, the linker refuses whatever it is given, or all fails."""
    (tmp_path / "sitecustomize.py").write_text("import tinyprune.kernels.gpu as gpu\n" + change)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(TinypruneError, match=f"^{said}"):
        compile_kernels(modules=["layers.layernorm"])


AT_ONCE = """
import sys
from tinyprune.kernels.cuda.device import cubins
from tinyprune.kernels.cuda.device.jit import cuda, floats, kernel
from tinyprune.kernels.gpu import Compiled


@kernel(floats, threads=32)
def double(x):
    x[cuda.grid(1)] += x[cuda.grid(1)]


print("ready", flush=True)
sys.stdin.readline()
found = cubins.cubin_of(double, (9, 0), print, lambda: None)
path = cubins.path_of(double, (9, 0))
large = found[0], found[1] * 100
for _ in range(200):  # whoever reads meanwhile finds one of the files, whole
    cubins.keep(path, Compiled(*large, ""))
    assert cubins.kept(path) in (found, large)
print(found[0], len(found[1]))
"""


def test_two_processes_that_start_at_once_both_succeed(tmp_path):
    """And leave one whole file: each writes its own and renames it."""
    program = tmp_path / "program.py"
    program.write_text(AT_ONCE, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    environment["TINYPRUNE_CACHE"] = str(tmp_path / "cache")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, program], env=environment, **pipes) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0] and ends[0][0].startswith("double\n")  # both have compiled it
    (file,) = (tmp_path / "cache" / "cubins").iterdir()
    symbol, cubin = cubins.kept(file)
    assert "double" in symbol and cubin[1:4] == b"ELF"
