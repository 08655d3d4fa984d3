"""Every CUDA kernel as NVIDIA's compiler and linker see it, for GPUs that are not here."""

import math
import re

import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.compiled import code_of, compiled
from tinyprune.kernels.cuda.device.jit import KERNELS

from . import planted
from .modules import PACKAGE, all_modules, kernels_of

CAPABILITIES = [(8, 0), (8, 6), (9, 0), (10, 0)]  # of an A100, an RTX 30, an H100, a B200
REPORTED = {  # patterns in what nvJitLink reports
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
}
SHARED_BYTES = 48 * 1024  # that a block may have without asking for more at launch
REGISTERS = 65536  # of a multiprocessor; a warp of 32 threads gets a multiple of 256
# kernels of attention and of large products take their operands four at a time
VECTORS = {"products.product", "attend.forward", "attend.queries", "attend.keys", "attend.distances"}


def ptx_of(kernel):
    """A kernel as PTX for the oldest GPU; the others' differs little. It stays on disk for the emulator."""
    return code_of(kernel, CAPABILITIES[0], ptx=True)[1].decode()


def problems(kernel, capability, ptx):
    """What is wrong with a compiled kernel in words; nothing if all is well."""
    report = compiled(kernel, capability).report
    found = {name: re.search(pattern, report) for name, pattern in REPORTED.items()}
    number = {name: int(match[1]) if match else 0 for name, match in found.items()}
    of_a_warp = -(-32 * number["registers"] // 256) * 256
    alignments = [int(bytes) for bytes in re.findall(r"\.shared \.align (\d+)", ptx)]
    vectors = re.search(r"\b(ld|st)\.shared\.v4", ptx)
    wrong = {
        "computes in float64": ".f64" in ptx and not kernel.float64,
        "has a stack": number["stack_bytes"] or ".local" in ptx,
        "spills registers": number["spill_store_bytes"] + number["spill_load_bytes"],
        "takes too much shared memory": number["shared_bytes"] > SHARED_BYTES,
        "does not fit on a multiprocessor": of_a_warp * -(-math.prod(kernel.block) // 32) > REGISTERS,
        "reads vectors of shared memory that is not aligned": vectors and not min(alignments) >= 16,
    }
    return [problem for problem, there in wrong.items() if there]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", kernels_of(all_modules()), ids=lambda kernel: kernel.__name__)
def test_compiled(kernel):
    ptx = ptx_of(kernel)
    assert [problems(kernel, capability, ptx) for capability in CAPABILITIES] == [[] for _ in CAPABILITIES]
    assert not re.search(r"\b(ld|st)\.v4", ptx)  # the compiler knows which memory vectors lie in
    if kernel.function.__module__.removeprefix(PACKAGE) in VECTORS:
        # tensor cores take their numbers one by one from shared memory
        wanted = {"ld.global.v4.f32"} | ({"ld.shared.v4.f32"} if "tf32" not in kernel.__name__ else set())
        assert all(instruction in ptx for instruction in wanted)


def test_kernels_have_different_names():
    names = [kernel.__name__ for kernel in kernels_of(all_modules())]
    assert len(names) == len(set(names))


PLANTED = {
    "double_precision": ["computes in float64"],
    "double_precision_on_purpose": [],
    "stack": ["has a stack"],
    "spills": ["has a stack", "spills registers"],
    "registers": ["does not fit on a multiprocessor"],
    "vectors_anywhere": ["reads vectors of shared memory that is not aligned"],
}


@pytest.mark.slow
def test_what_is_forbidden_is_found_and_what_cannot_be_compiled_is_named():
    made = {kernel.__name__: kernel for kernel in KERNELS if kernel.function.__module__ == planted.__name__}
    assert {name: problems(made[name], (8, 0), ptx_of(made[name])) for name in PLANTED} == PLANTED
    with pytest.raises(
        TinypruneError, match=r"^nvJitLink refused shared_memory for -arch=sm_80: .*too much shared data"
    ):
        problems(made["shared_memory"], (8, 0), "")
    with pytest.raises(TinypruneError, match=r"^Numba cannot compile .*planted\.unknown_name: "):
        ptx_of(made["unknown_name"])
