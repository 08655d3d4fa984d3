"""Compiled kernels, kept on disk: what the driver loads, by a hash of all that it depends on.

Compiling a kernel takes about a second, and a model needs dozens. The first start compiles all of them at once, a
process for each processor; later ones read them. A file is written whole or not at all, and one that was altered is
compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tinyprune.errors import SaveError
from tinyprune.files import cache_directory, replace_file
from tinyprune.kernels import cuda
from tinyprune.kernels.cuda.compiled import Compiled, compile_for

Capability = tuple[int, int]
PACKAGES = ("numba", "numba-cuda", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12")
DIGEST = 32  # bytes of a sha256


@cache
def sources() -> bytes:
    """Return the hash of the package's kernels and of the compilers' versions: device functions are shared."""
    found = hashlib.sha256(sys.version.encode())
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.update(f"{package} {metadata.version(package)}\n".encode())
    folder = Path(cuda.__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.digest()


def path_of(kernel: Any, capability: Capability) -> Path:
    """Return the file of a kernel that was compiled for GPUs of this compute capability."""
    about = (kernel.__name__, str(kernel.signature), kernel.threads, kernel.resident, capability)
    found = hashlib.sha256(sources() + repr(about).encode() + Path(inspect.getfile(kernel.function)).read_bytes())
    return cache_directory() / "cubins" / f"{kernel.__name__}-{found.hexdigest()[:32]}"


def kept(path: Path) -> tuple[str, bytes] | None:
    """Read a kernel: its symbol, and its cubin. None if it is not there, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    symbol, _, cubin = rest.partition(b"\0")
    return symbol.decode(), cubin


def keep(path: Path, kernel: Compiled) -> None:
    """Write a kernel, unless it cannot be kept; other processes may write the same one."""
    content = kernel.symbol.encode() + b"\0" + kernel.cubin
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(SaveError, OSError):
        replace_file(own, hashlib.sha256(content).digest() + content)
        own.replace(path)


def cubin_of(
    kernel: Any, capability: Capability, begin: Callable[[str], None], end: Callable[[], None]
) -> tuple[str, bytes]:
    """Return the symbol of a kernel, and what the driver loads for it.

    If it was not kept, it is compiled, and before it all kernels of the package that were not, in other processes.

    Args:
        kernel: a `jit.Kernel`.
        capability: the GPU's, such as (9, 0).
        begin, end: called before and after a kernel is compiled, with its name.

    Raises:
        UsageError: if the toolkit does not know the GPU.
        TinypruneError: if a kernel cannot be compiled.
    """
    path = path_of(kernel, capability)
    if (found := kept(path)) is not None:
        return found
    if kernel.function.__module__.startswith(f"{cuda.__name__}."):
        compile_all(capability, begin, end)
        if (found := kept(path)) is not None:
            return found
    begin(kernel.__name__)
    try:
        made = compile_for(kernel, capability)
    finally:
        end()
    keep(path, made)
    return made.symbol, made.cubin


@cache
def compile_all(capability: Capability, begin: Callable[[str], None], end: Callable[[], None]) -> None:
    """Compile and keep all kernels of the package that are not kept yet; once in a process, whether it works or not.

    A failure is not told here: whoever needs a kernel that is missing then compiles it, and tells.
    """
    program = [sys.executable, "-m", "tinyprune.kernels.cuda.precompile", ".".join(map(str, capability))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        count = int(process.stdout.readline() or 0)
        for n in range(count):
            begin(f"kernel {n + 1} of {count}")
            process.stdout.readline()
            end()
