"""A training step while other programs compute: on an idle machine, beside one of them, and beside one a processor.

All take turns, under one load after the other, over and over. Beside our own setting of how threads wait for each other
(see `kernels.waiting`) there are those that a user could choose. The fair share of a step beside a busy program on each
processor is twice its idle time: half of the processors is left.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tinyprune.bench.benchmarks.speed import our_step, torch_step
from tinyprune.bench.command import Options
from tinyprune.bench.processes import OURS, Contender, Processes
from tinyprune.bench.race import Case
from tinyprune.machine import processors
from tinyprune.progress import progress_bar
from tinyprune.tables import Record

SHAPES = ("tiny", "small")
ROUNDS = 5
SECONDS = 2.0  # of a turn on an idle machine: long against the system's time slices
FIRST = 0.5  # seconds that are not counted, in which caches warm up and threads notice how busy the machine is
SPREAD = 0.5  # seconds in which busy programs start, and the system spreads them over the processors
SETTINGS = ("GOMP_SPINCOUNT=300000", "OMP_WAIT_POLICY=passive")  # the runtime as it comes; always asleep


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """In this context so many other processes compute without end."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(SPREAD)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def contenders(options: Options, name: str) -> list[Contender]:
    """Return our step, ours with other settings of the runtime, the textbook's, and PyTorch's."""
    ours = our_step(options, name=name)
    found = [ours]
    if not options.on_device:
        found += [replace(ours, subject=f"{ours.subject}, {way}", library=f"{OURS} with {way}") for way in SETTINGS]
        found.append(replace(our_step(replace(options, backend="numpy"), name=name), library="numpy"))
    return found + [torch_step(mode, device=options.device, name=name) for mode in options.modes]


def run_busy(options: Options) -> list[Record]:
    """`tinyprune bench busy`: `median_ms` under each load, and how many times that of the idle machine it is."""
    cases = [Case(name, tuple(contenders(options, name))) for name in options.shapes or SHAPES]
    entries = [(case, c) for case in cases for c in case.contenders]
    loads, rounds = sorted({0, 1, processors()}), options.rounds or ROUNDS
    times: dict[tuple[str, int], list[float]] = {}
    turns = rounds * len(loads) * len(entries)
    with Processes(options.threads) as processes, progress_bar(total=turns, desc="busy", unit="turn") as bar:
        for case, c in entries:
            processes.ask(c.library, "build", key=case.key(c), contender=c)
        for _ in range(rounds):
            for load in loads:
                with busy_programs(load):
                    for case, c in entries:
                        processes.ask(c.library, "turn", key=case.key(c), seconds=FIRST)
                        answer = processes.ask(c.library, "turn", key=case.key(c), seconds=SECONDS)
                        times.setdefault((case.key(c), load), []).append(answer["seconds"])
                        bar.update()
    medians = {key: 1e3 * statistics.median(seconds) for key, seconds in times.items()}
    return [
        {
            "benchmark": "busy",
            "shape": case.shape,
            "subject": c.subject,
            "busy_programs": load,
            "median_ms": medians[case.key(c), load],
            "times_idle": medians[case.key(c), load] / medians[case.key(c), 0],
        }
        for case, c in entries
        for load in loads
    ]
