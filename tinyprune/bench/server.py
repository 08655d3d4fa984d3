"""A library's process: it builds workloads, and runs one when asked.

Requests are lines of JSON on standard input, and each is answered by a line on standard output. Between requests the
process is blocked, and its threads go to sleep before it answers, so that no other library runs during a measurement.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tinyprune.bench import Workload
from tinyprune.kernels.waiting import waiting_seconds

TURN = 0.1  # seconds that a turn lasts at least: the clock and the system's interruptions are then of no account
MEMORY_RUNS = 2
MIB = 2**20


def build(target: str, arguments: dict[str, Any]) -> Workload:
    """Call `target`, "module:function", which returns a `Workload`."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def take_turn(workload: Workload, calls: int) -> dict[str, float]:
    """Time `calls` runs: `seconds` for one unit, `elapsed` for all, and how long threads `waited` for a processor."""
    workload.run()  # caches and threads are cold after the others' turns
    gc.collect()
    waited, begin = waiting_seconds(), time.perf_counter()
    for _ in range(calls):
        workload.run()
    elapsed = time.perf_counter() - begin
    waited = max(0.0, waiting_seconds() - waited)
    settle()
    return {"seconds": elapsed / (calls * workload.units), "elapsed": elapsed, "waited": waited}


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
    begin, highest = workload.gauge or (reset_peak, peak)
    gc.collect()
    # Freed memory that the C library keeps would hide what is needed later.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    before = begin()
    for _ in range(MEMORY_RUNS):
        workload.run()
    return {"peak_mib": (highest() - before) / MIB}


def reset_peak() -> int:
    """Start a new peak where the system allows it (Linux); return the resident bytes from which to count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return status_bytes("VmRSS")


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    try:
        return status_bytes("VmHWM")
    except OSError:
        import resource  # which Windows does not have

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(field: str) -> int:
    """Read a field of /proc/self/status, which is in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class Server:
    """Answers requests: each method is one. `workloads` holds what was built, by key."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.once: dict[str, float] = {}  # seconds of a run

    def build(self, key: str, target: str, arguments: dict[str, Any], rehearsal: dict[str, Any] | None = None) -> dict:
        """Build a workload. A `rehearsal` is the same with other arguments, run once before: imports, compilation."""
        if rehearsal is not None:
            build(target, rehearsal).run()
        self.workloads[key] = build(target, arguments)
        return {}

    def results(self, key: str, path: str) -> dict:
        """Write the results, which the parent compares with others', to an .npz file."""
        import numpy as np

        np.savez(path, **self.workloads[key].results())
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
