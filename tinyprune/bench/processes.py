"""A library's process, and how it is asked: it builds workloads, and runs one when asked.

Requests are lines of JSON on the process's standard input, and each is answered by a line on its standard output.
Between requests the process is blocked, and its threads go to sleep before it answers, so that no other library runs
during a measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Gauge, Workload
from tinyprune.errors import TinypruneError
from tinyprune.kernels.waiting import waiting_seconds
from tinyprune.machine import HOLD_BLAS_BACK

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
    arguments: dict[str, Any]  # of that function, plain values
    gflop: float  # nominal operations of one unit of its workload, in 10⁹
    compared: bool = True  # whether its results must agree with the others'
    tolerance: float | None = None  # to which they must; None for that of the case
    optional: bool = False  # whether it is left out, with a message, if it cannot be built here


class ProcessError(TinypruneError):
    """A library's process reported an error or died."""


def environment(library: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a library's process.

    "numpy" is NumPy as a peer, its BLAS as fast as it can be; "… with NAME=VALUE" sets one more variable.
    """
    variables = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if library == "numpy":
        for name in HOLD_BLAS_BACK:
            variables.pop(name, None)
    if " with " in library:
        name, _, value = library.partition(" with ")[2].partition("=")
        variables[name] = value
    return variables


class Processes:
    """The libraries' processes, each started when it is first needed; they end with the `with` statement."""

    def __init__(self, threads: int) -> None:
        self.threads = threads  # of each process
        self.running: dict[str, tuple[subprocess.Popen[str], IO[str]]] = {}  # by library, with its standard error

    def start(self, library: str) -> None:
        """Start a library's process."""
        complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see `__exit__`)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints}
        command, variables = [sys.executable, "-m", __spec__.name], environment(library, self.threads)
        self.running[library] = subprocess.Popen(command, env=variables, encoding="utf-8", **pipes), complaints

    def ask(self, library: str, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a library's process a request, a method of `Server` and its arguments; return the answer.

        Raises ProcessError if the process reports an error, or has died.
        """
        if library not in self.running:
            self.start(library)
        process, complaints = self.running[library]
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = process.wait()
            complaints.seek(0)
            said = [line for line in complaints.read().split("\n") if line.strip()]
            last_words = said[-1] if said else f"exit status {status}"
            raise ProcessError(f"the benchmark's process for {library} ended: {last_words}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(f"{library}: {answer['error']}")
        return answer

    def build(
        self, key: str, contender: Contender, *, with_results: bool = False, rehearsal: dict[str, Any] | None = None
    ) -> dict[str, NDArray] | None:
        """Build a contender's workload in its library's process.

        Args:
            key: the workload's name there.
            with_results: whether to return its results.
            rehearsal: arguments that make it small; the small one runs once before: imports, compilation.
        """
        c, small = contender, None if rehearsal is None else contender.arguments | rehearsal
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "results.npz")) if with_results else None
            request = {"key": key, "target": c.target, "arguments": c.arguments, "rehearsal": small, "results": path}
            self.ask(c.library, "build", **request)
            if path is None:
                return None
            with np.load(path) as file:
                return dict(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, complaints in self.running.values():
            process.kill()  # it has nothing to save
            process.communicate()
            complaints.close()


def build(target: str, arguments: dict[str, Any]) -> Workload:
    """Call `target`, "module:function", which returns a `Workload`."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def take_turn(workload: Workload, calls: int) -> dict[str, float]:
    """Time `calls` runs.

    Returns:
        `seconds` for one unit; `waited`, the time that threads waited for a processor, as a share of all runs' time.
    """
    workload.run()  # caches and threads are cold after the others' turns
    gc.collect()
    waited, begin = waiting_seconds(), time.perf_counter()
    for _ in range(calls):
        workload.run()
    elapsed = time.perf_counter() - begin
    waited = max(0.0, waiting_seconds() - waited)
    settle()
    return {"seconds": elapsed / (calls * workload.units), "waited": waited / elapsed}


def settle(look: float = 0.004, at_most: float = 0.5) -> None:
    """Return when this process is idle: threads of OpenMP and BLAS spin for a while before they sleep."""
    end = time.monotonic() + at_most
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(look)
        if time.process_time() - before < look / 10:
            return


def peak_memory(workload: Workload) -> dict[str, float]:
    """Measure the MiB that the first `MEMORY_RUNS` runs need at their peak, beyond what the process held before."""
    gauge = workload.gauge or Gauge(reset_peak, lambda: resident_bytes("VmHWM"))
    gc.collect()
    # Freed memory that the C library keeps would hide what is needed later.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    before = gauge.begin()
    for _ in range(MEMORY_RUNS):
        workload.run()
    return {"peak_mib": (gauge.peak() - before) / MIB}


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

    def build(self, key: str, target: str, arguments: dict, rehearsal: dict | None, results: str | None) -> dict:
        """See `Processes.build`; `results` is a file for them."""
        if rehearsal is not None:
            build(target, rehearsal).run()
        self.workloads[key] = build(target, arguments)
        if results is not None:
            np.savez(results, **self.workloads[key].results())
        return {}

    def turn(self, key: str, seconds: float = TURN) -> dict:
        """See `take_turn`, with as many runs as take so many seconds; the first turn warms up and times one."""
        workload = self.workloads[key]
        if key not in self.once:
            workload.run()
            begin = time.perf_counter()
            workload.run()
            self.once[key] = time.perf_counter() - begin
        return take_turn(workload, max(1, math.ceil(seconds / self.once[key])))

    def peak(self, key: str) -> dict:
        """See `peak_memory`."""
        return peak_memory(self.workloads[key])


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and then closes our input
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:
            message = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {message[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
