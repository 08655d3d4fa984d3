"""The comparison: contenders take turns, over and over; medians, ratios, and whether to trust them.

1. Every peer is built and timed alone, before our process exists.
2. Ours starts. The results that all gave before they were first timed must be the same, arrays whole.
3. Ours, peer, ours, peer …, `rounds` times.
4. A peer that is slower here than alone has been disturbed: steps 3 and 1 again, and no ratio if it stays so.

A turn in which another program of the machine took a processor away is taken again, as long as there is patience; where
that is the rule and not the exception there is no ratio either, since not all suffer from it alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tinyprune.bench.workers import WorkerError, Workers
from tinyprune.errors import TinypruneError
from tinyprune.progress import say, silent
from tinyprune.tables import Record

SLOWED = 1.25  # a peer may be so many times slower than alone
ATTEMPTS = 3
WAITED = 0.02  # share of a turn that threads may wait for a processor
TOO_BUSY = 0.1  # the same of the median turn, above which there is no ratio
PAUSES = (0.1, 0.3, 1.0)  # seconds, before a turn is taken again
PATIENCE = 2.0  # seconds for each round that a race may spend on that
OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """Who does the work of a case, and how.

    Attributes:
        subject: its name in tables.
        library: works of one library share a process; "ours" is the one that starts last.
        target: "module:function", makes its `Work`.
        arguments: of that function, plain values.
        gflop: nominal operations of one unit of its work, in 10⁹.
        compared: whether its results must be the same as the others'.
        optional: left out, with a word, if it cannot be built here.
    """

    subject: str
    library: str
    target: str
    arguments: dict[str, Any]
    gflop: float
    compared: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Case:
    """One shape and its contenders. Ratios are to the first, which is ours."""

    shape: str
    contenders: tuple[Contender, ...]
    tolerance: float = 1e-4

    def key(self, contender: Contender) -> str:
        """What the contender's work is called in its process."""
        return f"{self.shape}/{contender.subject}"


class Turn(NamedTuple):
    """What a turn, or the median turn, was like."""

    seconds: float  # for one unit of work
    waited: float  # share of the time that threads waited for a processor


def race(benchmark: str, cases: Sequence[Case], *, rounds: int, threads: int) -> list[Record]:
    """Time every contender of every case.

    Args:
        benchmark: its name, for the records.
        cases: whose works fit into memory together.
        rounds: turns of each.
        threads: of each process.

    Returns:
        a record for each contender of each case: benchmark, shape, subject, median_ms, ratio_to_subject (its time over
        that of the case's first; None if one was disturbed), gflops (nominal, per second), alone_ms (None for ours),
        waited_percent (of the time: how long its threads waited for a processor that others had).

    Raises:
        TinypruneError: if results disagree, or a library fails.
    """
    turns = rounds * sum(1 + (c.library != OURS) for case in cases for c in case.contenders)
    with (
        Workers(threads) as workers,
        tempfile.TemporaryDirectory() as directory,
        tqdm(total=turns, desc=benchmark, unit="turn", disable=silent()) as bar,
    ):
        running = Race(rounds, workers, Path(directory), bar)
        cases = [running.enter_peers(case) for case in cases]
        for case in cases:
            running.enter_ours(case)
        return [{"benchmark": benchmark} | row for case in cases for row in running.run(case)]


class Race:
    """The steps of a race, and what they share.

    Args:
        rounds: turns of each contender.
        workers: the libraries' processes.
        directory: where they leave their results.
        bar: counts turns.
    """

    def __init__(self, rounds: int, workers: Workers, directory: Path, bar: tqdm) -> None:
        self.rounds = rounds
        self.workers = workers
        self.directory = directory
        self.bar = bar
        self.alone: dict[str, float] = {}  # seconds, by key
        self.results: dict[str, dict[str, Any]] = {}
        self.patience = PATIENCE * rounds

    def enter_peers(self, case: Case) -> Case:
        """Build the peers' works and time each, alone; returns the case without those that cannot be built."""
        entered = []
        for contender in case.contenders:
            if contender.library != OURS:
                try:
                    self.enter(case, contender)
                    self.time_alone(case, contender)
                except WorkerError as error:
                    if not contender.optional:
                        raise
                    say(f"{contender.subject} is left out at {case.shape}: {error}")
                    continue
            entered.append(contender)
        return replace(case, contenders=tuple(entered))

    def enter_ours(self, case: Case) -> None:
        """Build our works, and look whether all agree."""
        for contender in case.contenders:
            if contender.library == OURS:
                self.enter(case, contender)
        from tinyprune.bench.agreement import disagreement

        first, *others = (c for c in case.contenders if c.compared)
        for other in others:
            problem = disagreement(self.results[case.key(first)], self.results[case.key(other)], case.tolerance)
            if problem:
                raise TinypruneError(f"{first.subject} and {other.subject} disagree at {case.shape}: {problem}")

    def enter(self, case: Case, contender: Contender) -> None:
        """Build a work, and keep its results."""
        import numpy as np

        key = case.key(contender)
        self.bar.set_postfix_str(f"{key}: building")
        self.workers.build(contender.library, key, contender.target, contender.arguments)
        if contender.compared:
            path = self.directory / "results.npz"
            self.workers.ask(contender.library, "results", key=key, path=str(path))
            with np.load(path) as file:
                self.results[key] = dict(file)

    def turn(self, case: Case, contender: Contender) -> Turn:
        """One turn, and another one if it was disturbed."""
        for pause in (*PAUSES, 0):
            begin = time.monotonic()
            answer = self.workers.ask(contender.library, "turn", key=case.key(contender))
            waited = answer["waited"] / (answer["elapsed"] * self.workers.threads)
            if waited <= WAITED or self.patience <= 0 or not pause:
                break
            time.sleep(pause)
            self.patience -= time.monotonic() - begin
        self.bar.update()
        return Turn(answer["seconds"], waited)

    def time_alone(self, case: Case, contender: Contender) -> None:
        """Turns in which nobody else has one in between."""
        self.bar.set_postfix_str(f"{case.key(contender)}: alone")
        self.alone[case.key(contender)] = median([self.turn(case, contender) for _ in range(self.rounds)]).seconds

    def run(self, case: Case) -> list[Record]:
        """The alternating run, repeated while a peer is slower in it than alone."""
        for _attempt in range(ATTEMPTS):
            self.bar.set_postfix_str(case.shape)
            turns = [[self.turn(case, c) for c in case.contenders] for _ in range(self.rounds)]
            medians = [median(own) for own in zip(*turns, strict=True)]
            rows = records(case, medians, [self.alone.get(case.key(c)) for c in case.contenders])
            disturbed = [c for c, row in zip(case.contenders, rows, strict=True) if row["ratio_to_subject"] is None]
            if not disturbed:
                break
            # Where others use the machine too, it may have become slower for everybody.
            for contender in disturbed:
                if contender.library != OURS:
                    self.time_alone(case, contender)
        for contender in disturbed:
            say(f"no ratio for {contender.subject} at {case.shape}: it was slower than alone, or the machine was busy")
        return rows


def median(turns: Sequence[Turn]) -> Turn:
    """The median of the times, and of the waiting."""
    return Turn(*map(statistics.median, zip(*turns, strict=True)))


def records(case: Case, turns: Sequence[Turn], alone: Sequence[float | None]) -> list[Record]:
    """A record for each contender, from its median turn in company and its seconds alone; see `race`."""
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


def fastest(case: Case, *, threads: int, rounds: int = 3) -> Contender:
    """Of several ways to do the same, the one that takes the least time. They have a process for themselves."""
    with Workers(threads) as workers:
        for c in case.contenders:
            workers.build(c.library, case.key(c), c.target, c.arguments)
        times: dict[str, list[float]] = {c.subject: [] for c in case.contenders}
        for _ in range(rounds):
            for c in case.contenders:
                times[c.subject].append(workers.ask(c.library, "turn", key=case.key(c))["seconds"])
    return min(case.contenders, key=lambda c: min(times[c.subject]))
