"""Compiled kernels, kept on disk: what the driver loads, by a hash of all that it depends on.

A kernel takes up to five seconds to compile, and a model has about forty: a minute at the first start on a machine, no
time later. A file is written whole or not at all, and one that was altered is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
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
    """Return the symbol of a kernel, and what the driver loads for it; it is compiled unless it was kept.

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
    begin(kernel.__name__)
    try:
        made = compile_for(kernel, capability)
    finally:
        end()
    keep(path, made)
    return made.symbol, made.cubin
