"""The comparison: contenders take turns, over and over; then medians, ratios and peak memory.

1. Every contender is prepared. The results that all return before they are first timed must agree, whole arrays.
2. Ours, peer, ours, peer …, `rounds` times.

Peak memory is measured apart from the race, each contender in a fresh process, see `with_memory`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinyprune.bench.processes import (
    Ask,
    Contender,
    ProcessError,
    library_process,
    measure_peak,
    prepare,
    take_turn,
)
from tinyprune.errors import TinypruneError
from tinyprune.io.progress import duration, progress_bar, say
from tinyprune.io.tables import Record


def race(benchmark: str, shape: str, contenders: Sequence[Contender], rounds: int, threads: int) -> list[Record]:
    """Time every contender at one shape, `rounds` turns each. Ratios are to the first contender, which is ours.

    Ctrl-C after the first round ends the race: the records are then those of the rounds that are complete.

    Returns:
        a record for each contender: benchmark, shape, subject, median_ms, ratio_to_subject (its time over ours), gflops
        (nominal, per second), spread_percent (median distance of its turns from the median turn, of that turn), rounds.

    Raises:
        TinypruneError: if results disagree, or a library fails.
    """
    with ExitStack() as stack:
        libraries = dict.fromkeys(c.library for c in contenders)
        ask = {library: stack.enter_context(library_process(library, threads)) for library in libraries}
        total = (1 + rounds) * len(contenders)
        bar = stack.enter_context(progress_bar(total=total, desc=f"{benchmark} {shape}", leave=False))
        say(f"{benchmark} {shape}: {len(contenders)} contenders are prepared, some of which compile")
        turns: dict[Contender, list[float]] = {c: [] for c in prepared(shape, contenders, ask, bar)}
        try:
            for done in range(rounds):
                begin = time.perf_counter()
                for c, seconds in turns.items():
                    seconds.append(ask[c.library](take_turn, c))
                    bar.update()
                if not done and rounds > 1:
                    rest = (rounds - 1) * (time.perf_counter() - begin)
                    say(f"{benchmark} {shape}: round 1 of {rounds}, the others take {duration(rest)}")
        except KeyboardInterrupt:
            complete = min(map(len, turns.values()))
            if not complete:
                raise
            turns = {c: seconds[:complete] for c, seconds in turns.items()}
    ours = statistics.median(turns[contenders[0]])
    return [{"benchmark": benchmark, "shape": shape} | record(c, turns[c], ours) for c in turns]


def prepared(shape: str, contenders: Sequence[Contender], ask: Mapping[str, Ask], bar: tqdm) -> list[Contender]:
    """Prepare all contenders, each a step of the bar; return those that can be prepared here.

    Raises TinypruneError if their results disagree, or one fails that is not optional.
    """
    ours, reference, entered = contenders[0], {}, []
    for c in contenders:
        bar.update()
        try:
            results = ask[c.library](prepare, c)
        except ProcessError as error:
            if not c.optional:
                raise
            say(f"{c.subject} is left out at {shape}: {error}")
            continue
        entered.append(c)
        reference = reference or results
        if c.tolerance is not None and (problem := disagreement(reference, results, c.tolerance)):
            raise TinypruneError(f"{ours.subject} and {c.subject} disagree at {shape}: {problem}")
    return entered


def record(contender: Contender, turns: Sequence[float], ours: float) -> Record:
    """Return a contender's numbers, see `race`: from the seconds of its turns, and of our median turn."""
    median = statistics.median(turns)
    spread = statistics.median(abs(seconds - median) for seconds in turns)
    return {
        "subject": contender.subject,
        "median_ms": 1e3 * median,
        "ratio_to_subject": median / ours,
        "gflops": contender.gflop / median,
        "spread_percent": 100 * spread / median,
        "rounds": len(turns),
    }


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


def with_memory(rows: list[Record], contenders: Sequence[Contender], threads: int) -> list[Record]:
    """Return the records of one shape with `peak_mib` and `memory_ratio` (a subject's over the first contender's).

    Both are None for rows of other contenders, and where the system does not tell. The peak is that of the first two
    runs of a contender's workload, beyond what a fresh process holds that has built everything (weights, inputs) and
    has run the same once with a single text (imports, compilation).
    """
    peaks = {}
    for c in contenders:
        with library_process(c.library, threads) as ask:
            peaks[c.subject] = ask(measure_peak, c)
    ours = peaks[contenders[0].subject]

    def memory(subject: str) -> Record:
        peak = peaks.get(subject)
        return {"peak_mib": peak, "memory_ratio": peak / ours if peak and ours else None}

    return [row | memory(row["subject"]) for row in rows]
