"""The road from a plain loop to the kernels, rung by rung (`tinyprune.kernels.ladder`), beside NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tinyprune.bench import Workload
from tinyprune.bench.benchmarks.speed import blas
from tinyprune.bench.command import Options
from tinyprune.bench.processes import OURS, Contender
from tinyprune.bench.race import Case, race
from tinyprune.bench.shapes import attention_arguments, attention_gflop, matrices, model_shape
from tinyprune.errors import UsageError
from tinyprune.progress import say
from tinyprune.tables import Record

ROUNDS = 5
N = 1024  # rows and columns of the matrices; the lowest rungs, which would take too long, multiply smaller ones
N_LOW = {"Python loops": 48, "compiled": 256}
SHAPE, B = "relative-d128", 4


def matmul_workload(rung: str, n: int) -> Workload:
    """The product of two n × n matrices by one rung."""
    from tinyprune.kernels.ladder.matmul import RUNGS

    a, b = matrices(n, n, n, "A·B")
    return Workload(lambda: RUNGS[rung](a, b), lambda: {"out": RUNGS[rung](a, b)})


def attention_workload(rung: str, **shape: Any) -> Workload:
    """Attention forward by one rung; `shape` is that of a model with relative positions and persistent vectors."""
    from tinyprune.kernels.ladder.attention import RUNGS

    measured = model_shape(**shape)
    c = measured.config
    arrays, _ = attention_arguments(measured)
    span = c.M + c.T if c.span is None else c.span
    return Workload(lambda: RUNGS[rung](**arrays, span=span), lambda: {"out": RUNGS[rung](**arrays, span=span)})


def matmul_rung(rung: str, n: int) -> Contender:
    """Compute one rung's product of n × n matrices."""
    target = "tinyprune.bench.benchmarks.ladder:matmul_workload"
    return Contender(rung, OURS, target, {"rung": rung, "n": n}, 2 * n**3 / 1e9)


def attention_rung(rung: str, **shape: Any) -> Contender:
    """One rung's attention. The textbook has a process of its own, where its BLAS has the processors to itself."""
    measured = model_shape(**shape)
    gflop = attention_gflop(measured.config, measured.B) / 3  # which counts backward as twice forward
    library = "numpy" if rung.startswith("textbook") else OURS
    target = "tinyprune.bench.benchmarks.ladder:attention_workload"
    return Contender(rung, library, target, {"rung": rung} | shape, gflop)


def climb(ladder: str, rungs: Sequence[Record], beside: Sequence[Record] = ()) -> list[Record]:
    """A ladder's records from the lowest rung up, then what is shown beside it.

    `times_faster` is how many times as many operations per second a rung does as the one below. The ratios compare
    operations per second, too, since the lowest rungs had less to do.
    """
    faster = [None, *(high["gflops"] / low["gflops"] for low, high in pairwise(rungs)), *(None for _ in beside)]
    top = rungs[-1]["gflops"]
    return [
        {"ladder": ladder}
        | row
        | {"ratio_to_subject": row["ratio_to_subject"] and top / row["gflops"], "times_faster": times}
        for row, times in zip([*rungs, *beside], faster, strict=True)
    ]


def matmul_ladder(options: Options) -> list[Record]:
    """Time the lowest rungs at sizes of their own, all others and BLAS at one size."""
    from tinyprune.kernels.ladder.matmul import RUNGS

    sizes = {rung: N_LOW.get(rung, N) for rung in RUNGS}
    cases = [Case(f"{n}×{n}×{n}", (matmul_rung(rung, n),)) for rung, n in sizes.items() if n < N]
    high = [matmul_rung(rung, n) for rung, n in sizes.items() if n == N]
    cases.append(Case(f"{N}×{N}×{N}", (*reversed(high), blas((N, N, N, "A·B")))))
    rows = race("ladder", cases, rounds=options.rounds or ROUNDS, threads=options.threads)
    by_name = {row["subject"]: row for row in rows}
    return climb("matmul", [by_name.pop(rung) for rung in RUNGS], list(by_name.values()))


def run_ladder(options: Options) -> list[Record]:
    """`tinyprune bench ladder`; all rungs of attention are timed at one model's shape, forward."""
    from tinyprune.kernels.ladder.attention import RUNGS

    if options.peers:
        say("the ladder is compared with NumPy, always and only")
    if len(options.shapes) > 1:
        raise UsageError(f"the ladder of attention stands at one shape, got {', '.join(options.shapes)}")
    name = options.shapes[0] if options.shapes else SHAPE
    config = model_shape(name).config
    if not config.relative or not config.attended:
        raise UsageError(f"the ladder of attention needs relative positions and persistent vectors, got {name}")
    records = matmul_ladder(options)
    contenders = tuple(attention_rung(rung, name=name, B=B) for rung in reversed(RUNGS))
    case = Case(f"attention of {name}, B {B}", contenders)
    rows = race("ladder", [case], rounds=options.rounds or ROUNDS, threads=options.threads)
    return records + climb("attention", rows[::-1])
