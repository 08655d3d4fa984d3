"""A library's process, and what it is asked: to prepare a workload, to take a turn, to measure its peak of memory.

Each library has a process of its own, a `ProcessPoolExecutor` with one worker, which is blocked between requests.
(pyperf also has a process for each benchmark, but measures one after the other: its `Runner` cannot alternate.)
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.errors import TinypruneError
from tinyprune.kernels.machine import HOLD_BLAS_BACK

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# Seconds that a turn lasts at least: the clock and the system's interruptions are then of no account.
TURN = 0.1
# Seconds after a turn: threads of OpenMP and BLAS spin for up to 0.2 s before they sleep.
PAUSE = 0.25
MEMORY_RUNS = 2
OURS = "ours"  # the library that is ours
MIB = 2**20

Ask = Callable[..., Any]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: a library and how it is called."""

    subject: str  # its name in tables
    library: str  # contenders of one library share a process
    target: str  # "module:function" that returns its `Workload`
    arguments: dict[str, Any] = field(hash=False)  # of that function
    gflop: float  # nominal operations of one run of its workload, in 10⁹
    # to which its results must agree with ours; None if they are not compared
    tolerance: float | None
    optional: bool = False  # whether it is left out, with a message, if it cannot be prepared here


class ProcessError(TinypruneError):
    """A library's process reported an error or died."""


def environment(library: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a library's process; "numpy", a peer, has its BLAS as fast as it can be."""
    variables = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if library == "numpy":
        for name in HOLD_BLAS_BACK:
            variables.pop(name, None)
    return variables


@contextmanager
def library_process(library: str, threads: int) -> Iterator[Ask]:
    """Start a library's process, which ends with the `with` statement, whatever it is doing then.

    The context's value is a function: `ask(do, contender)` returns what `do(contender)` returns in that process. It
    raises ProcessError if that fails, or if the process has died.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin)
    with mock.patch.dict(os.environ, environment(library, threads), clear=True):
        pid = pool.submit(os.getpid).result()

    def ask(do: Callable[[Contender], Any], contender: Contender) -> Any:
        try:
            return pool.submit(answer, do, contender).result()
        except BrokenProcessPool:
            raise ProcessError(f"the benchmark's process for {library} ended; was there enough memory?") from None

    try:
        yield ask
    finally:
        with suppress(OSError):  # it may have died
            os.kill(pid, signal.SIGTERM)
        pool.shutdown()


def begin() -> None:
    """Prepare a new process: it prints nothing, leaves Ctrl-C to its parent, and ends if its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what a library prints would be among the parent's results
        os.dup2(nowhere, descriptor)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the parent has ended, and end this process."""
    multiprocessing.parent_process().join()
    os._exit(1)


def answer(do: Callable[[Contender], Any], contender: Contender) -> Any:
    """Return `do(contender)`; an exception becomes one line, since not all of a library's own can be sent."""
    try:
        return do(contender)
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [""]
        raise ProcessError(f"{contender.library}: {type(error).__name__}: {first}") from None


@functools.cache
def workload(contender: Contender) -> Workload:
    """Build a contender's workload, once in its process."""
    module, _, function = contender.target.partition(":")
    return getattr(importlib.import_module(module), function)(**contender.arguments)


def prepare(contender: Contender) -> dict[str, NDArray]:
    """Build a contender's workload and run it once, which compiles; return the results that are to be compared."""
    results = {}
    if contender.tolerance is not None:
        results = workload(contender).results()
    workload(contender).run()
    return results


def take_turn(contender: Contender) -> float:
    """Time as many runs as take `TURN` seconds; return the seconds of one."""
    run = workload(contender).run
    once = timeit.timeit(run, number=1)  # caches and threads are cold after the others' turns
    calls = math.ceil(TURN / once)
    seconds = timeit.timeit(run, number=calls) / calls
    time.sleep(PAUSE)
    return seconds


def measure_peak(contender: Contender) -> float | None:
    """Measure the MiB that the first `MEMORY_RUNS` runs need at their peak, beyond what the process held before.

    The workload runs once with a single text before that, for what imports and compilation need. None on other systems
    than Linux, which do not tell the peak since a moment.
    """
    if sys.platform != "linux":
        return None
    workload(replace(contender, arguments=contender.arguments | {"B": 1})).run()
    run = workload(contender).run
    gc.collect()
    # Freed memory that the C library keeps would hide what is needed later. (musl has no such function.)
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = resident_peak()
    for _ in range(MEMORY_RUNS):
        run()
    return (resident_peak() - before) / MIB


def resident_peak() -> int:
    """Return the most bytes of main memory that this process has occupied since the peak was begun anew."""
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(peak) << 10  # it is given in KiB
