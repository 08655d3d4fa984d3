"""Warm-up: compile kernels and tell the user so; time steps to estimate how long a stage takes.

Kernels are compiled once per machine.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np

from tinyprune.config import TrainConfig
from tinyprune.data import Segments, Text
from tinyprune.errors import NotFiniteError
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.progress import duration, progress_bar, say
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import Objective, Training, train_step

# What is short is measured for so long, what is long three times or until ten times as long is over.
SECONDS = 0.1


@contextmanager
def announced(ops: Engine, what: str, *, run: bool = False) -> Iterator[list[str]]:
    """Say when the backend `ops` begins to compile kernels for `what`, and in the end how many and how long it took.

    A terminal shows meanwhile how many are compiled, of about how many if it is a `run`, and which one is next.
    Yields the list of those that have been begun.
    """
    compiling: list[str] = []  # a function waits while one that it calls is compiled
    bars = []
    begun: list[str] = []
    seconds, since, about = 0.0, 0.0, ops.functions_to_compile() if run else None

    def begin(name: str) -> None:
        nonlocal since
        if not bars:
            say(f"{what}: {ops.compiling}")
            of = f" of about {about}" if about else ""
            form = f"compiled {{n}}{of} functions, now {{desc}}"
            bars.append(stack.enter_context(progress_bar(bar_format=form, leave=False)))
        if not compiling:
            since = time.perf_counter()
        compiling.append(name)
        begun.append(name)
        bars[0].set_description_str(name)

    def end() -> None:
        nonlocal seconds
        compiling.pop()
        bars[0].update()
        if compiling:
            bars[0].set_description_str(compiling[-1])
        else:
            bars[0].clear()
            seconds += time.perf_counter() - since

    with ExitStack() as stack, ops.compilations(begin, end):
        yield begun
    if begun:
        say(f"{what}: compiled {len(begun)} function{'s' * (len(begun) != 1)} in {duration(seconds)}; {ops.kept}")


def median_seconds(ops: Engine, work: Callable[[], object]) -> float:
    """Return how long `work` takes, the median of some calls in which nothing was compiled.

    The first call is not among them, since it reads kernels from disk and meets cold caches.
    """
    compiled: list[str] = []
    measured: list[float] = []
    work()
    with ops.compilations(compiled.append, lambda: None):
        while sum(measured) < (SECONDS if len(measured) >= 3 else 10 * SECONDS):
            before, start = len(compiled), time.perf_counter()
            work()
            ops.synchronize()
            if len(compiled) == before:
                measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def measure_seconds(
    model: Transformer, objective: Objective, segments: Segments, text: Text, config: TrainConfig
) -> tuple[float, float]:
    """Time a training step and an evaluation on the validation split, in seconds.

    Model and objective are not changed. All kernels that a stage needs are compiled afterwards.
    """
    ops = model.ops
    params = {name: ops.to_device(ops.to_host(value).copy()) for name, value in model.params.items()}
    replica = dataclasses.replace(model, params=params)
    rng = np.random.default_rng(0)
    training = Training.start(replica, segments, config, copy.deepcopy(objective), rng)
    # a piece of the text, long enough to fill the memory and to read with it
    piece = text.valid[: model.config.M + 2 * model.config.T + 1]
    with ops.compiling_ahead() as others, suppress(NotFiniteError):  # the real training reports it
        if others is not None:
            train_step(dataclasses.replace(training, model=dataclasses.replace(replica, ops=others)))

    def step() -> None:
        with suppress(NotFiniteError):
            train_step(training)

    def look() -> None:
        with suppress(NotFiniteError):
            evaluate(replica, piece, 0)

    return median_seconds(ops, step), median_seconds(ops, look) * len(text.valid) / len(piece)
