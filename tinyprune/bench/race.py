"""The comparison: contenders take turns, over and over; medians, ratios, peak memory, and whether to trust the ratios.

1. Every peer is built and timed alone, before our process exists.
2. Ours starts. The results that all returned before they were first timed must agree, whole arrays.
3. Ours, peer, ours, peer …, `rounds` times.
4. A peer that is slower here than alone has been disturbed: steps 3 and 1 again, and no ratio if it stays so.

A turn in which another program took a processor away is repeated, as long as there is patience; where that is the rule
rather than the exception there is no ratio either, since it does not slow all contenders alike.

Peak memory is measured apart from the race, each contender in a fresh process, see `peak_mib`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinyprune.bench.processes import ProcessError, Processes
from tinyprune.errors import TinypruneError
from tinyprune.progress import progress_bar, say
from tinyprune.tables import Record

SLOWED = 1.25  # a peer may take this many times its time alone
ATTEMPTS = 3
WAITED = 0.02  # share of a turn that threads may wait for a processor
TOO_BUSY = 0.1  # the same of the median turn, above which there is no ratio
PAUSES = (0.1, 0.3, 1.0)  # seconds, before a turn is repeated
PATIENCE = 2.0  # seconds for each round that a race may spend on repeating turns
OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """One side of a case: a library and how it is called."""

    subject: str  # its name in tables
    library: str  # contenders of one library share a process; that of "ours" starts last
    target: str  # "module:function" that returns its `Workload`
    arguments: dict[str, Any]  # of that function, plain values
    gflop: float  # nominal operations of one unit of its workload, in 10⁹
    compared: bool = True  # whether its results must agree with the others'
    optional: bool = False  # whether it is left out, with a message, if it cannot be built here


@dataclass(frozen=True)
class Case:
    """One shape and its contenders. Ratios are to the first, which is ours."""

    shape: str
    contenders: tuple[Contender, ...]
    tolerance: float = 1e-4

    def key(self, contender: Contender) -> str:
        """Return the name of the contender's workload in its process."""
        return f"{self.shape}/{contender.subject}"


class Turn(NamedTuple):
    """The outcome of a turn, or of the median turn."""

    seconds: float  # for one unit
    waited: float  # share of the time that threads waited for a processor


def race(benchmark: str, cases: Sequence[Case], *, rounds: int, threads: int) -> list[Record]:
    """Time every contender of every case, `rounds` turns each; the cases' workloads must fit into memory together.

    Returns:
        a record for each contender of each case: benchmark, shape, subject, median_ms, ratio_to_subject (its time over
        that of the case's first; None if one was disturbed), gflops (nominal, per second), alone_ms (None for ours),
        waited_percent (share of the time that its threads waited for a processor which others had).

    Raises:
        TinypruneError: if results disagree, or a library fails.
    """
    turns = rounds * sum(1 + (c.library != OURS) for case in cases for c in case.contenders)
    with (
        Processes(threads) as processes,
        tempfile.TemporaryDirectory() as directory,
        progress_bar(total=turns, desc=benchmark, unit="turn") as bar,
    ):
        running = Race(rounds, processes, Path(directory), bar)
        cases = [running.enter_peers(case) for case in cases]
        for case in cases:
            running.enter_ours(case)
        return [{"benchmark": benchmark} | row for case in cases for row in running.run(case)]


class Race:
    """The steps of a race, and the state they share; libraries write their results to `directory`."""

    def __init__(self, rounds: int, processes: Processes, directory: Path, bar: tqdm) -> None:
        self.rounds, self.processes, self.directory, self.bar = rounds, processes, directory, bar
        self.alone: dict[str, float] = {}  # seconds, by key
        self.results: dict[str, dict[str, NDArray]] = {}
        self.patience = PATIENCE * rounds

    def enter_peers(self, case: Case) -> Case:
        """Build the peers' workloads and time each alone; returns the case without those that cannot be built."""
        entered = []
        for contender in case.contenders:
            if contender.library != OURS:
                try:
                    self.enter(case, contender)
                    self.time_alone(case, contender)
                except ProcessError as error:
                    if not contender.optional:
                        raise
                    say(f"{contender.subject} is left out at {case.shape}: {error}")
                    continue
            entered.append(contender)
        return replace(case, contenders=tuple(entered))

    def enter_ours(self, case: Case) -> None:
        """Build our workloads, and check that all results agree."""
        for contender in case.contenders:
            if contender.library == OURS:
                self.enter(case, contender)
        first, *others = (c for c in case.contenders if c.compared)
        for other in others:
            problem = disagreement(self.results[case.key(first)], self.results[case.key(other)], case.tolerance)
            if problem:
                raise TinypruneError(f"{first.subject} and {other.subject} disagree at {case.shape}: {problem}")

    def enter(self, case: Case, contender: Contender) -> None:
        """Build a workload, and load its results."""
        c, key = contender, case.key(contender)
        self.bar.set_postfix_str(f"{key}: building")
        self.processes.ask(c.library, "build", key=key, target=c.target, arguments=c.arguments)
        if c.compared:
            path = self.directory / "results.npz"
            self.processes.ask(c.library, "results", key=key, path=str(path))
            with np.load(path) as file:
                self.results[key] = dict(file)

    def turn(self, case: Case, contender: Contender) -> Turn:
        """Take one turn, and again if it was disturbed."""
        for pause in (*PAUSES, 0):
            begin = time.monotonic()
            answer = self.processes.ask(contender.library, "turn", key=case.key(contender))
            waited = answer["waited"] / (answer["elapsed"] * self.processes.threads)
            if waited <= WAITED or self.patience <= 0 or not pause:
                break
            time.sleep(pause)
            self.patience -= time.monotonic() - begin
        self.bar.update()
        return Turn(answer["seconds"], waited)

    def time_alone(self, case: Case, contender: Contender) -> None:
        """Take turns with no other contender's in between."""
        self.bar.set_postfix_str(f"{case.key(contender)}: alone")
        self.alone[case.key(contender)] = median([self.turn(case, contender) for _ in range(self.rounds)]).seconds

    def run(self, case: Case) -> list[Record]:
        """Alternate between all contenders; repeat that while a peer is slower in it than alone."""
        for _attempt in range(ATTEMPTS):
            self.bar.set_postfix_str(case.shape)
            turns = [[self.turn(case, c) for c in case.contenders] for _ in range(self.rounds)]
            medians = [median(own) for own in zip(*turns, strict=True)]
            rows = records(case, medians, [self.alone.get(case.key(c)) for c in case.contenders])
            disturbed = [c for c, row in zip(case.contenders, rows, strict=True) if row["ratio_to_subject"] is None]
            if not disturbed:
                break
            # If other programs are running, the machine may have become slower for all contenders.
            for contender in disturbed:
                if contender.library != OURS:
                    self.time_alone(case, contender)
        for contender in disturbed:
            say(f"no ratio for {contender.subject} at {case.shape}: it was slower than alone, or the machine was busy")
        return rows


def median(turns: Sequence[Turn]) -> Turn:
    """The median of the times, and of the shares of waiting."""
    return Turn(*map(statistics.median, zip(*turns, strict=True)))


def records(case: Case, turns: Sequence[Turn], alone: Sequence[float | None]) -> list[Record]:
    """Build a record for each contender from its median turn in the race and its seconds alone; see `race`."""
    rows = []
    for contender, (t, waited), by_itself in zip(case.contenders, turns, alone, strict=True):
        slowed = by_itself is not None and t > SLOWED * by_itself
        busy = max(waited, turns[0].waited) > TOO_BUSY
        rows.append(
            {
                "shape": case.shape,
                "subject": contender.subject,
                "median_ms": 1e3 * t,
                "ratio_to_subject": None if slowed or busy else t / turns[0].seconds,
                "gflops": contender.gflop / t,
                "alone_ms": None if by_itself is None else 1e3 * by_itself,
                "waited_percent": 100 * waited,
            }
        )
    return rows


def disagreement(a: dict[str, NDArray], b: dict[str, NDArray], tolerance: float) -> str:
    """Describe how two contenders' results differ; "" if ‖x − y‖ ≤ tolerance · ‖y‖ for every pair of arrays."""
    if a.keys() != b.keys():
        return f"one has {', '.join(a)}, the other {', '.join(b)}"
    for name, x in a.items():
        y = b[name].astype(np.float64)
        if x.shape != y.shape:
            return f"{name} has shapes {x.shape} and {y.shape}"
        error, size = np.linalg.norm(x - y), np.linalg.norm(y)
        if not error <= tolerance * size:  # also if there are NaNs
            return f"{name} differs by {error / size:.1e} of its norm, allowed is {tolerance:.0e}"
    return ""


def fastest(case: Case, *, threads: int, rounds: int = 3) -> Contender:
    """Find which of several ways to do the same takes the least time, in processes of their own."""
    with Processes(threads) as processes:
        for c in case.contenders:
            processes.ask(c.library, "build", key=case.key(c), target=c.target, arguments=c.arguments)
        times: dict[str, list[float]] = {c.subject: [] for c in case.contenders}
        for _ in range(rounds):
            for c in case.contenders:
                times[c.subject].append(processes.ask(c.library, "turn", key=case.key(c))["seconds"])
    return min(case.contenders, key=lambda c: min(times[c.subject]))


def peak_mib(contender: Contender, rehearsal: dict[str, Any], threads: int) -> float:
    """Peak memory of the first two runs of a contender's workload, in MiB.

    It counts from what a fresh process holds that has built everything (weights, inputs) and has run the same once at
    a small size (imports, compilation). That is exact on Linux; other systems only report the largest size so far, so
    what the small size needed is missing. On a GPU it is the memory of arrays as the library counts it, see
    `workload.Gauge`. `rehearsal` are the arguments that make the workload small.
    """
    c, small = contender, contender.arguments | rehearsal
    with Processes(threads) as processes:
        processes.ask(c.library, "build", key="", target=c.target, arguments=c.arguments, rehearsal=small)
        return processes.ask(c.library, "peak", key="")["peak_mib"]


def with_memory(
    rows: list[Record], contenders: Sequence[Contender], rehearsal: dict[str, Any], threads: int
) -> list[Record]:
    """Return the records of one case with `peak_mib` and `memory_ratio` (a subject's over ours, the first contender's).

    Both are None for rows of other contenders. See `peak_mib` for `rehearsal`.
    """
    peaks = {c.subject: peak_mib(c, rehearsal, threads) for c in contenders}
    ours = peaks[contenders[0].subject]

    def memory(peak: float | None) -> Record:
        return {"peak_mib": peak, "memory_ratio": peak / ours if peak is not None and ours > 0 else None}

    return [row | memory(peaks.get(row["subject"])) for row in rows]
