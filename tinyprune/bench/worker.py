"""The process of one library: it builds what is to be timed, and runs it when it is told that it is its turn.

Requests come as lines of JSON on standard input, and each is answered by a line on standard output. While it waits,
the process is blocked; before it answers, its threads have gone to sleep. So nobody has company while it is measured.
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
import sys
import time
from pathlib import Path
from typing import Any

from tinyprune.bench.work import Work

TURN = 0.1  # seconds that a turn lasts at least
MEMORY_RUNS = 2
MIB = 2**20


def build(target: str, arguments: dict[str, Any]) -> Work:
    """Call `target`, "module:function", which makes a `Work`."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def save_results(work: Work, path: str) -> dict[str, Any]:
    """Write the results, which the parent compares with others', to an .npz file."""
    import numpy as np

    np.savez(path, **work.results())
    return {}


def calls_in_a_turn(work: Work) -> int:
    """Warm up; how often `work` has to run for a turn that the clock can measure."""
    work.run()
    begin = time.perf_counter()
    work.run()
    return max(1, math.ceil(TURN / (time.perf_counter() - begin)))


def take_turn(work: Work, calls: int) -> dict[str, float]:
    """Time `calls` runs: `seconds` for one unit, `elapsed` for all, and how long threads `waited` for a processor."""
    work.run()  # caches and threads are cold after the others' turns
    gc.collect()
    waited, begin = waiting_seconds(), time.perf_counter()
    for _ in range(calls):
        work.run()
    elapsed = time.perf_counter() - begin
    waited = max(0.0, waiting_seconds() - waited)
    settle()
    return {"seconds": elapsed / (calls * work.units), "elapsed": elapsed, "waited": waited}


def settle(look: float = 0.004, at_most: float = 0.5) -> None:
    """Return when this process has come to rest: threads of OpenMP and BLAS spin for a while before they sleep."""
    end = time.monotonic() + at_most
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(look)
        if time.process_time() - before < look / 10:
            return


def waiting_seconds() -> float:
    """How long this process's threads have waited for a processor because others had it; 0 where nobody counts."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread may have ended meanwhile
            total += int(path.read_text().split()[1])  # nanoseconds
    return total / 1e9


def peak_memory(work: Work) -> dict[str, float]:
    """MiB that the first `MEMORY_RUNS` runs need beyond what the process holds before them, at the worst moment."""
    begin, highest = work.gauge or (reset_peak, peak)
    gc.collect()
    give_back_free_memory()
    before = begin()
    for _ in range(MEMORY_RUNS):
        work.run()
    return {"peak_mib": (highest() - before) / MIB}


def give_back_free_memory() -> None:
    """Let memory that was freed go back to the system, if this C library knows how; or it would hide later needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def reset_peak() -> int:
    """Begin a new peak where the system can (Linux); returns the resident bytes from which to count."""
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
    """A field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class Server:
    """Answers requests; `works` holds what was built, by key."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.calls: dict[str, int] = {}

    def build(self, key: str, target: str, arguments: dict[str, Any], rehearsal: dict[str, Any] | None) -> dict:
        """Make a work. A `rehearsal` is the same with other arguments, run once before: imports, compilation."""
        if rehearsal is not None:
            build(target, rehearsal).run()
        self.works[key] = build(target, arguments)
        return {}

    def results(self, key: str, path: str) -> dict:
        return save_results(self.works[key], path)

    def turn(self, key: str) -> dict:
        if key not in self.calls:
            self.calls[key] = calls_in_a_turn(self.works[key])
        return take_turn(self.works[key], self.calls[key])

    def peak(self, key: str) -> dict:
        return peak_memory(self.works[key])


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair, which then closes our input
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
