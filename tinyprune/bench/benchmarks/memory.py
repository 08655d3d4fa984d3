"""Peak memory and time: of attention as T grows, of a training step with fewer heads, and with 1, 2, 4 … threads.

Both sides remove the heads for good. On a GPU threads do not matter. How memory is measured: `race.with_memory`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyprune.bench.benchmarks.speed import attention_contenders, our_step, torch_step
from tinyprune.bench.command import Options
from tinyprune.bench.processes import Contender
from tinyprune.bench.race import Case, race, with_memory
from tinyprune.bench.shapes import model_shape
from tinyprune.tables import Record

ROUNDS = 5
SHAPE = "relative-d128"
LENGTHS = (64, 128, 256, 512, 1024, 2048)
B = 2  # of the attention: at T 2048, each matrix of scores of the plain way takes 160 MB


def measure(
    sweep: str, value: int, shape: str, contenders: tuple[Contender, ...], rehearsal: dict[str, Any], options: Options
) -> list[Record]:
    """Measure one point of a sweep: `value` is its place on the axis called `sweep`."""
    rows = race("memory", [Case(shape, contenders)], rounds=options.rounds or ROUNDS, threads=options.threads)
    rows = with_memory(rows, contenders, rehearsal, options.threads)
    return [row | {"sweep": sweep, "value": value} for row in rows]


def step_contenders(options: Options, **shape: Any) -> tuple[Contender, ...]:
    """Training steps, ours and PyTorch's eager ones."""
    return our_step(options, **shape), *(torch_step(mode, device=options.device, **shape) for mode in options.modes)


def run_memory(options: Options) -> list[Record]:
    """`tinyprune bench memory`."""
    records = []
    for name in options.shapes or (SHAPE,):
        for T in LENGTHS:
            contenders = attention_contenders(options, name=name, T=T, B=B)
            records += measure("T", T, f"attention of {name}, B {B}, T {T}", contenders, {"T": 32, "B": 1}, options)
        H = model_shape(name).config.H
        for heads in sorted({1, *range(2, H + 1, 2), H}):
            contenders = step_contenders(options, name=name, heads=heads)
            records += measure("heads", heads, f"step of {name}, {heads} of {H} heads", contenders, {"B": 1}, options)
        threads = 1
        while threads <= options.threads and not options.on_device:
            some, shape = replace(options, threads=threads), f"step of {name}, {threads} thread{'s' * (threads > 1)}"
            records += measure("threads", threads, shape, step_contenders(some, name=name), {"B": 1}, some)
            threads *= 2
    return records
