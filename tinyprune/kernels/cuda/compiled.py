"""Compile kernels for a GPU's compute capability, and store the code on disk. No GPU is needed.

Numba translates a kernel to LLVM's code (LTO-IR), the same for all GPUs. NVIDIA's nvJitLink optimises it and makes the
cubin, machine code that the driver loads. (By way of PTX, three of the kernels would spill registers.) A kernel takes
up to five seconds, and a model has about forty: a minute at the first start on a machine, no time later, and half of it
for another kind of GPU. This module imports neither Numba nor CUDA.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from tinyprune.errors import SaveError, TinypruneError
from tinyprune.io.files import cache_directory, replace_file
from tinyprune.kernels.gpu import explained, linker

Capability = tuple[int, int]

OLDEST = (8, 0)  # Numba compiles for this compute capability, unless the GPU is older; the linker for the GPU's
PACKAGES = ("numba", "numba-cuda", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12")


class Compiled(NamedTuple):
    """A kernel, compiled for one kind of GPU."""

    symbol: str  # its name in the code: some 300 letters, of module, types and more
    code: bytes  # a cubin, which the driver loads, or PTX
    report: str  # what the linker says of it: registers, bytes of shared memory, spills


def compiled(kernel: Any, capability: Capability, ptx: bool = False) -> Compiled:
    """Compile a `device.jit.Kernel` for a compute capability such as (9, 0), to a cubin or to PTX.

    Raises:
        UsageError: if the toolkit does not know the GPU; says what to install.
        TinypruneError: if Numba or the linker refuses the kernel; with its message.
    """
    try:
        least = min(capability, OLDEST)
        code = kept(path_of(kernel, least, "ltoir"), lambda: llvm_code(kernel, least))
        result, report = linked(code, kernel.__name__, capability, ptx)
    except TinypruneError:
        raise
    except Exception as error:  # Numba's errors, of which there are many kinds
        said = f"Numba cannot compile {kernel.function.__module__}.{kernel.__name__}: {error}"
        raise explained(error) or TinypruneError(said) from error
    named_in = report
    if ptx:
        result = result.rstrip(b"\0")
        named_in = result.decode()
    return Compiled(re.search(r"(?:\.entry |entry function ')(\w+)", named_in)[1], result, report)


def llvm_code(kernel: Any, capability: Capability) -> bytes:
    """Return LLVM's code of a kernel, for GPUs of this compute capability or a newer one."""
    from numba import cuda

    bounds = (math.prod(kernel.block), kernel.resident) if kernel.resident else None
    options = {"device": False, "abi": "numba", "output": "ltoir", "launch_bounds": bounds, "lineinfo": True}
    # Numba asks a GPU, which may not be there, for its capability where kernels call device functions
    gpu = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: gpu):
        return cuda.compile(kernel.function, kernel.signature, cc=capability, **options)[0]


def linked(code: bytes, name: str, capability: Capability, ptx: bool) -> tuple[bytes, str]:
    """Make the cubin of a kernel, or its PTX; return it and the linker's report.

    Raises TinypruneError with its message if it refuses.
    """
    nvjitlink, architecture = linker(), f"-arch=sm_{capability[0]}{capability[1]}"
    kind, option = ("ptx", "-ptx") if ptx else ("cubin", "-verbose")
    options = [architecture, "-lto", option]
    handle = nvjitlink.create(len(options), options)
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


@cache
def sources() -> bytes:
    """Return a hash of all kernels' source files, since they share device functions, and of the compilers' versions."""
    found = hashlib.sha256(sys.version.encode())
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.update(f"{package} {metadata.version(package)}\n".encode())
    folder = Path(__file__).parents[1]
    for path in sorted(path for path in folder.rglob("*.py") if path.parent.name != "emulator"):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.digest()


def path_of(kernel: Any, capability: Capability, kind: str) -> Path | None:
    """Return the file for a `device.jit.Kernel`, a compute capability and a kind of code: ltoir, ptx or cubin.

    Its name has a hash of all that the code depends on. None for a kernel of a notebook: it is in no file, and depends
    on whatever cells were run before.
    """
    source = Path(inspect.getfile(kernel.function))
    if not source.exists():
        return None
    about = (kernel.__name__, str(kernel.signature), kernel.threads, kernel.resident, capability, kind)
    found = hashlib.sha256(sources() + repr(about).encode() + source.read_bytes())
    return cache_directory() / "cubins" / f"{kernel.__name__}-{found.hexdigest()[:32]}"


def kept(path: Path | None, make: Callable[[], bytes]) -> bytes:
    """Return what a file has, or else what `make` returns; the file has it then.

    Several processes may do so at once: each writes a file under another name, and renames it when it is complete.
    """
    if path is None:
        return make()
    with contextlib.suppress(OSError):
        return path.read_bytes()
    content, temporary = make(), path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(SaveError, OSError):  # where nothing can be written, it is made at every start
        replace_file(temporary, content)
        temporary.replace(path)
    return content


LISTENERS: list[tuple[Callable[[str], None], Callable[[], None]]] = []  # of `compilations`


@contextlib.contextmanager
def compilations(begin: Callable[[str], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin(name)` and `end()` around each kernel's compilation in the context."""
    LISTENERS.append((begin, end))
    try:
        yield
    finally:
        LISTENERS.remove((begin, end))


def code_of(kernel: Any, capability: Capability, ptx: bool = False) -> tuple[str, bytes]:
    """Return the symbol of a kernel and what the driver loads for it: a cubin, or PTX for the emulator.

    It is compiled unless a file has it. Raises as `compiled`.
    """

    def make() -> bytes:
        for begin, _ in LISTENERS:
            begin(kernel.__name__)
        try:
            symbol, code, _ = compiled(kernel, capability, ptx)
        finally:
            for _, end in LISTENERS:
                end()
        return symbol.encode() + b"\0" + code

    symbol, _, code = kept(path_of(kernel, capability, "ptx" if ptx else "cubin"), make).partition(b"\0")
    return symbol.decode(), code
