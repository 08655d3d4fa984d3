"""The comparison: contenders take turns, over and over; medians, ratios, peak memory, and whether to trust the ratios.

1. Every contender is built. The results that all return before they are first timed must agree, whole arrays.
2. Ours, peer, ours, peer …, `rounds` times.
3. Step 2 again if threads had to wait for a processor that another program had, which does not slow all contenders
   alike; no ratio if it stays so.

Peak memory is measured apart from the race, each contender in a fresh process, see `with_memory`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinyprune.bench.processes import Contender, ProcessError, Processes
from tinyprune.errors import TinypruneError
from tinyprune.io.progress import progress_bar, say
from tinyprune.io.tables import Record

ATTEMPTS = 3
TOO_BUSY = 0.1  # share of the median turn that threads may wait for a processor


@dataclass(frozen=True)
class Case:
    """One shape and its contenders. Ratios are to the first, which is ours."""

    shape: str
    contenders: tuple[Contender, ...]
    tolerance: float = 1e-4

    def key(self, contender: Contender) -> str:
        """Return the name of the contender's workload in its process."""
        return f"{self.shape}/{contender.subject}"


def race(benchmark: str, cases: Sequence[Case], *, rounds: int, threads: int) -> list[Record]:
    """Time every contender of every case, `rounds` turns each; the cases' workloads must fit into memory together.

    Returns:
        a record for each contender of each case: benchmark, shape, subject, median_ms, ratio_to_subject (its time over
        that of the case's first; None on a busy machine), gflops (nominal, per second), waited_percent (share of the
        time that its threads waited for a processor which others had).

    Raises:
        TinypruneError: if results disagree, or a library fails.
    """
    with (
        Processes(threads) as processes,
        progress_bar(total=rounds * sum(len(case.contenders) for case in cases), desc=benchmark, unit="turn") as bar,
    ):
        entered = [enter(case, processes, bar) for case in cases]
        return [{"benchmark": benchmark} | row for case in entered for row in take_turns(case, processes, rounds, bar)]


def enter(case: Case, processes: Processes, bar: tqdm) -> Case:
    """Build all workloads of a case; return it without the contenders that cannot be built here.

    Raises TinypruneError if their results disagree.
    """
    found: dict[str, dict[str, NDArray]] = {}  # results by subject, ours first
    entered = []
    for c in case.contenders:
        bar.set_postfix_str(f"{case.key(c)}: building")
        try:
            results = processes.ask(c.library, "build", key=case.key(c), contender=c, with_results=c.compared)
        except ProcessError as error:
            if not c.optional:
                raise
            say(f"{c.subject} is left out at {case.shape}: {error}")
            continue
        entered.append(c)
        if results is None:
            continue
        first = next(iter(found), c.subject)
        found[c.subject] = results
        problem = disagreement(found[first], results, case.tolerance if c.tolerance is None else c.tolerance)
        if problem:
            raise TinypruneError(f"{first} and {c.subject} disagree at {case.shape}: {problem}")
    return replace(case, contenders=tuple(entered))


def take_turns(case: Case, processes: Processes, rounds: int, bar: tqdm) -> list[Record]:
    """Alternate between all contenders of a case, again while the machine is busy; see `race`."""
    for _attempt in range(ATTEMPTS):
        turns: dict[str, list[Record]] = {c.subject: [] for c in case.contenders}
        bar.set_postfix_str(case.shape)
        for _ in range(rounds):
            for c in case.contenders:
                turns[c.subject].append(processes.ask(c.library, "turn", key=case.key(c)))
                bar.update()
        rows = records(case, [median(own) for own in turns.values()], processes.threads)
        disturbed = [row["subject"] for row in rows if row["ratio_to_subject"] is None]
        if not disturbed:
            return rows
    say(f"no ratio for {', '.join(disturbed)} at {case.shape}: other programs had the processors")
    return rows


def median(turns: Sequence[Record]) -> Record:
    """Return the median of each number of the turns."""
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def records(case: Case, turns: Sequence[Record], threads: int) -> list[Record]:
    """Build a record for each contender from its median turn, see `race`."""
    waited = [turn["waited"] / threads for turn in turns]
    ours = turns[0]["seconds"]
    return [
        {
            "shape": case.shape,
            "subject": contender.subject,
            "median_ms": 1e3 * turn["seconds"],
            "ratio_to_subject": None if max(share, waited[0]) > TOO_BUSY else turn["seconds"] / ours,
            "gflops": contender.gflop / turn["seconds"],
            "waited_percent": 100 * share,
        }
        for contender, turn, share in zip(case.contenders, turns, waited, strict=True)
    ]


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


def with_memory(
    rows: list[Record], contenders: Sequence[Contender], rehearsal: dict[str, Any], threads: int
) -> list[Record]:
    """Return the records of one case with `peak_mib` and `memory_ratio` (a subject's over ours, the first contender's).

    Both are None for rows of other contenders. The peak is that of the first two runs of a contender's workload, from
    what a fresh process holds that has built everything (weights, inputs) and has run the same once at a small size
    (imports, compilation). That is exact on Linux; other systems only report the largest size so far, so what the small
    size needed is missing. On a GPU it is the memory of arrays as the library counts it, see `Workload.gauge`.
    `rehearsal` are the arguments that make the workload small.
    """
    peaks: dict[str, float] = {}
    for c in contenders:
        with Processes(threads) as processes:
            processes.ask(c.library, "build", key="", contender=c, rehearsal=rehearsal)
            peaks[c.subject] = processes.ask(c.library, "peak", key="")
    ours = peaks[contenders[0].subject]
    measured = {s: {"peak_mib": x, "memory_ratio": x / ours if ours > 0 else None} for s, x in peaks.items()}
    return [row | measured.get(row["subject"], {"peak_mib": None, "memory_ratio": None}) for row in rows]
