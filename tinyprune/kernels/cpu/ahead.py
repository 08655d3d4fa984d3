"""Compile attention in a second process, while this one compiles the rest.

Numba compiles one function at a time in a process, and attention is nearly half of the work. Each process keeps what it
has compiled in Numba's folder, where the other finds it; attention has hardly a compiled function in common with them.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu import jit
from tinyprune.kernels.cpu.attention import attention_backward, attention_forward


def worthwhile() -> bool:
    """Return whether there is a second processor, and a folder that does not have attention's kernels yet."""
    folder = Path(jit.fill.stats.cache_path)
    return (
        jit.CACHED and numba.config.NUMBA_DEFAULT_NUM_THREADS > 1 and not any(folder.glob("attention.backward-*.nbi"))
    )


def zero_forward(*arrays: NDArray | None, **options: Any) -> tuple[NDArray, SimpleNamespace]:
    """Return zeros of the shape of attention's output, and a cache of forward's arguments and `o`, zeros as well."""
    out = np.zeros_like(arrays[0])
    return out, SimpleNamespace(arguments=arrays, o=out)


def zero_backward(dout: NDArray, cache: SimpleNamespace) -> tuple[NDArray | None, ...]:
    """Return gradients of zero for the arguments of `zero_forward`."""
    return tuple(None if x is None else np.zeros_like(x) for x in cache.arguments)


@contextmanager
def second_process() -> Iterator[None]:
    """Compile attention in this context. It waits for the end; the process does not outlive an error.

    Where no process can be started, nothing is compiled ahead.
    """
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        process = subprocess.Popen([sys.executable, "-m", "tinyprune.kernels.cpu.ahead"], **silent)
    except OSError:
        yield
        return
    try:
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    head, row, vectors = (np.zeros(shape, np.float32) for shape in ((1, 1, 1, 1), (1, 1), (1, 1, 1)))
    out, cache = attention_forward(head, head, head, vectors, row, row, vectors, vectors, np.ones(1, np.float32))
    attention_backward(out, cache)
