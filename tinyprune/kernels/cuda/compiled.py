"""Compile one kernel for GPUs of a compute capability. No GPU is needed.

Numba hands LLVM's code to nvJitLink, which optimises it and makes the GPU's own. (By way of PTX, three of the kernels
would spill registers.) Importing this module imports neither Numba nor CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from tinyprune.errors import TinypruneError
from tinyprune.kernels.gpu import explained, linker

Capability = tuple[int, int]

FIRST = (8, 0)  # compute capability that kernels are written for; the linker makes them those of newer GPUs
REPORTED = {  # patterns in what nvJitLink reports
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
}


class Compiled(NamedTuple):
    """A kernel, compiled for one kind of GPU."""

    symbol: str  # Numba's name for it has module, types and more, in 300 letters
    cubin: bytes  # what the driver loads
    report: str  # the linker's


def compile_for(kernel: Any, capability: Capability) -> Compiled:
    """Compile a `device.jit.Kernel`.

    Raises:
        UsageError: if the toolkit does not know the GPU; says what to install.
        TinypruneError: if Numba or the linker refuses the kernel; with its message.
    """
    try:
        return compiled(kernel.function, kernel.signature, capability)
    except TinypruneError:
        raise
    except Exception as error:  # Numba's errors, of which there are many kinds
        said = f"Numba cannot compile {kernel.function.__module__}.{kernel.__name__}: {error}"
        raise explained(error) or TinypruneError(said) from error


def compiled(kernel: Any, signature: Any, capability: Capability) -> Compiled:
    """Compile a kernel for a compute capability.

    Args:
        kernel: a function, or the result of `cuda.jit`. Its attribute `launch_bounds`, if any, goes to the compiler.
        signature: its types, `numba.void(…)`.
        capability: such as (9, 0).

    Raises:
        TinypruneError: if the linker refuses the kernel; with its message.
    """
    function = getattr(kernel, "py_func", kernel)
    code = llvm_code(function, signature, min(capability, FIRST))
    cubin, report = linked(code, function.__name__, capability)
    return Compiled(re.search(r"entry function '(\w+)'", report)[1], cubin, report)


def compile_kernel(kernel: Any, signature: Any, capability: Capability) -> dict[str, Any]:
    """Compile a kernel as `compiled` does, and return a record of the result.

    Returns:
        `kernel`, `capability` and `ptx`; from the linker's report a thread's registers, a block's bytes of shared
        memory, and the bytes of a thread's stack and of spilled registers.
    """
    function = getattr(kernel, "py_func", kernel)
    name, report = function.__name__, compiled(kernel, signature, capability).report
    code = llvm_code(function, signature, min(capability, FIRST))
    ptx = linked(code, name, capability, ptx=True)[0].rstrip(b"\0").decode()
    found = {key: re.search(pattern, report) for key, pattern in REPORTED.items()}
    numbers = {key: int(match[1]) if match else 0 for key, match in found.items()}
    about = {"kernel": name, "capability": f"{capability[0]}.{capability[1]}"}
    return about | numbers | {"ptx": ptx.replace(re.search(r"\.entry (\w+)", ptx)[1], name)}


@contextmanager
def pretended_gpu(capability: Capability) -> Iterator[None]:
    """Answer for a GPU when Numba asks for its capability, which it does for kernels that call functions."""
    stand_in = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: stand_in):
        yield


@lru_cache(4)  # one kernel after the other is compiled for several GPUs
def llvm_code(function: Any, signature: Any, capability: tuple[int, int]) -> bytes:
    """Return LLVM's code of a kernel, for GPUs of this compute capability or a newer one."""
    from numba import cuda

    bounds = getattr(function, "launch_bounds", None)
    options = {"device": False, "abi": "numba", "output": "ltoir", "launch_bounds": bounds}
    with pretended_gpu(capability):
        return cuda.compile(function, signature, cc=capability, **options)[0]


def linked(code: bytes, name: str, capability: tuple[int, int], ptx: bool = False) -> tuple[bytes, str]:
    """Make the cubin of a kernel, or its PTX; return it and the linker's report.

    Raises TinypruneError with its message if it refuses.
    """
    nvjitlink, architecture = linker(), f"-arch=sm_{capability[0]}{capability[1]}"
    options = [architecture, "-lto", *(["-ptx"] if ptx else ["-verbose"])]
    handle = nvjitlink.create(len(options), options)
    kind = "ptx" if ptx else "cubin"
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), name)
        nvjitlink.complete(handle)
        result = bytearray(getattr(nvjitlink, f"get_linked_{kind}_size")(handle))
        getattr(nvjitlink, f"get_linked_{kind}")(handle, result)
        report = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, report)
    except nvjitlink.nvJitLinkError as error:
        said = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, said)
        lines = bytes(said).rstrip(b"\0").decode(errors="replace").splitlines()
        errors = [line for line in lines if "error" in line or "fatal" in line] or lines or [str(error)]
        raise TinypruneError(f"nvJitLink refused {name} for {architecture}: {' '.join(errors)}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(result), bytes(report).rstrip(b"\0").decode(errors="replace")
