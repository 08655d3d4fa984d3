"""Peak memory of a contender's work.

It is what the first two runs need, at the worst moment, beyond what a fresh process holds that has built everything
(weights, inputs) and has done the same once at a small size (imports, compilation). On Linux that is exact; elsewhere
the system only tells the largest size so far, so what the small size needed is missing from it. On a GPU it is the
memory that its arrays take, as the library counts it, see `work.Gauge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyprune.bench.race import Contender
from tinyprune.bench.workers import Workers
from tinyprune.tables import Record


def peak_mib(contender: Contender, rehearsal: dict[str, Any], threads: int) -> float:
    """Peak memory of the contender's work in a process of its own, in MiB; see above."""
    with Workers(threads) as workers:
        small = contender.arguments | rehearsal
        workers.build(contender.library, "work", contender.target, contender.arguments, small)
        return workers.ask(contender.library, "peak", key="work")["peak_mib"]


def with_memory(
    records: list[Record], contenders: Sequence[Contender], rehearsal: dict[str, Any], threads: int
) -> list[Record]:
    """The records of one case with `peak_mib` and `memory_ratio` (a subject's over ours, the first's).

    Args:
        records: of one case.
        contenders: those to be measured, ours first; for others the two are None.
        rehearsal: arguments that make their works small.
        threads: of each process.
    """
    peaks = {c.subject: peak_mib(c, rehearsal, threads) for c in contenders}
    ours = peaks[contenders[0].subject]
    rows = []
    for record in records:
        peak = peaks.get(record["subject"])
        rows.append(record | {"peak_mib": peak, "memory_ratio": peak / ours if peak is not None and ours > 0 else None})
    return rows
