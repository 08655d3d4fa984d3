"""A library's process, and how it is asked: it builds workloads, and runs one when asked.

Between requests the process is blocked, and its threads go to sleep before it answers, so that no other library runs
during a measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest import mock

from numpy.typing import NDArray

from tinyprune.bench import Gauge, Workload
from tinyprune.errors import TinypruneError
from tinyprune.kernels.machine import HOLD_BLAS_BACK
from tinyprune.kernels.waiting import waiting_seconds

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
TURN = 0.1  # seconds that a turn lasts at least: the clock and the system's interruptions are then of no account
MEMORY_RUNS = 2
OURS = "ours"  # the library that is ours
MIB = 2**20


@dataclass(frozen=True)
class Contender:
    """One side of a case: a library and how it is called."""

    subject: str  # its name in tables
    library: str  # contenders of one library share a process
    target: str  # "module:function" that returns its `Workload`
    arguments: dict[str, Any]  # of that function
    gflop: float  # nominal operations of one unit of its workload, in 10⁹
    compared: bool = True  # whether its results must agree with the others'
    tolerance: float | None = None  # to which they must; None for that of the case
    optional: bool = False  # whether it is left out, with a message, if it cannot be built here


class ProcessError(TinypruneError):
    """A library's process reported an error or died."""


def environment(library: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a library's process; "numpy", a peer, has its BLAS as fast as it can be."""
    variables = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if library == "numpy":
        for name in HOLD_BLAS_BACK:
            variables.pop(name, None)
    return variables


class Processes:
    """The libraries' processes, each started when it is first needed; they end with the `with` statement."""

    def __init__(self, threads: int) -> None:
        self.threads = threads  # of each process
        self.running: dict[str, tuple[Any, Connection]] = {}  # by library: its process, and our end of the pipe

    def ask(self, library: str, do: str, **arguments: Any) -> Any:
        """Send a library's process a request, a method of `Server` and its arguments; return the answer.

        Raises ProcessError if the process reports an error, or has died.
        """
        if library not in self.running:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            with mock.patch.dict(os.environ, environment(library, self.threads), clear=True):
                process.start()
            theirs.close()
            self.running[library] = process, ours
        process, pipe = self.running[library]
        try:
            pipe.send((do, arguments))
            error, answer = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise ProcessError(f"the benchmark's process for {library} ended: exit code {process.exitcode}") from None
        if error:
            raise ProcessError(f"{library}: {error}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, pipe in self.running.values():
            process.kill()  # it has nothing to save
            process.join()
            pipe.close()


def build(target: str, arguments: dict[str, Any]) -> Workload:
    """Call `target`, "module:function", which returns a `Workload`."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def settle(look: float = 0.004, at_most: float = 0.5) -> None:
    """Return when this process is idle: threads of OpenMP and BLAS spin for a while before they sleep."""
    end = time.monotonic() + at_most
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(look)
        if time.process_time() - before < look / 10:
            return


def reset_peak() -> int:
    """Start a new peak where the system allows it (Linux); return the resident bytes from which to count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def resident_bytes(field: str) -> int:
    """Read a field of /proc/self/status, which is in KiB; other systems only tell the largest size so far."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith(field))
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Server:
    """Answers requests: each method is one. `workloads` holds what was built, by key."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.once: dict[str, float] = {}  # seconds of a run

    def build(
        self, key: str, contender: Contender, with_results: bool = False, rehearsal: dict[str, Any] | None = None
    ) -> dict[str, NDArray] | None:
        """Build a contender's workload; return its results if they are wanted.

        Args:
            key: the workload's name here.
            rehearsal: arguments that make it small; the small one runs once before: imports, compilation.
        """
        c = contender
        if rehearsal is not None:
            build(c.target, c.arguments | rehearsal).run()
        self.workloads[key] = build(c.target, c.arguments)
        return self.workloads[key].results() if with_results else None

    def turn(self, key: str, seconds: float = TURN) -> dict[str, float]:
        """Time as many runs as take so many seconds; the first turn warms up and times one.

        Returns:
            `seconds` for one unit; `waited`, how long threads waited for a processor, as a share of the runs' time.
        """
        workload = self.workloads[key]
        if key not in self.once:
            workload.run()
            begin = time.perf_counter()
            workload.run()
            self.once[key] = time.perf_counter() - begin
        calls = max(1, math.ceil(seconds / self.once[key]))
        workload.run()  # caches and threads are cold after the others' turns
        gc.collect()
        waited, begin = waiting_seconds(), time.perf_counter()
        for _ in range(calls):
            workload.run()
        elapsed = time.perf_counter() - begin
        waited = max(0.0, waiting_seconds() - waited)
        settle()
        return {"seconds": elapsed / (calls * workload.units), "waited": waited / elapsed}

    def peak(self, key: str) -> float:
        """Measure the MiB that the first `MEMORY_RUNS` runs need at their peak, beyond what the process held before."""
        workload = self.workloads[key]
        gauge = workload.gauge or Gauge(reset_peak, lambda: resident_bytes("VmHWM"))
        gc.collect()
        # Freed memory that the C library keeps would hide what is needed later.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
        if trim is not None:
            trim(0)
        before = gauge.begin()
        for _ in range(MEMORY_RUNS):
            workload.run()
        return (gauge.peak() - before) / MIB


def serve(requests: Connection) -> None:
    """Answer each request with an error (or "") and a result, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and then ends this process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what a library prints would be among the parent's results
        os.dup2(nowhere, descriptor)
    server = Server()
    with contextlib.suppress(EOFError, OSError):
        while True:
            do, arguments = requests.recv()
            try:
                answer = "", getattr(server, do)(**arguments)
            except Exception as error:
                message = str(error).strip().splitlines() or [""]
                answer = f"{type(error).__name__}: {message[0]}", None
            requests.send(answer)
