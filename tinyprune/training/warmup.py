"""Warm-up: compile the kernels of a stage before it begins, and tell the user so, and how long the stage takes.

Kernels are compiled once per machine.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import TrainConfig
from tinyprune.data import Segments, Text
from tinyprune.errors import NotFiniteError
from tinyprune.io.progress import duration, progress_bar, say
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.evaluation import evaluate
from tinyprune.training.loop import validations
from tinyprune.training.step import Gradients, Noise, Objective, Training, train_step

SLOW = 2.0  # seconds of a step that is not made once more
SMALL = 1 << 16  # numbers in a parameter that is updated


@contextmanager
def announced(ops: Engine, what: str, *, run: bool = False) -> Iterator[list[str]]:
    """Say when the backend `ops` begins to compile kernels for `what`, and in the end how many and how long it took.

    A terminal shows meanwhile how many are compiled, of about how many if it is a `run`, and which one is next.
    Yields the list of functions whose compilation has begun.
    """
    bars: list[Any] = []
    depth = 0  # a function waits while one that it calls is compiled
    begun: list[str] = []
    seconds, since, about = 0.0, 0.0, ops.functions_to_compile() if run else None

    def begin(name: str) -> None:
        nonlocal depth, since
        if not bars:
            say(f"{what}: {ops.compiling}")
            of = f" of about {about}" if about else ""
            form = f"compiled {{n}}{of} functions, now {{desc}}"
            bars.append(stack.enter_context(progress_bar(bar_format=form, leave=False)))
        since = since if depth else time.perf_counter()
        depth += 1
        begun.append(name)
        bars[0].set_description_str(name)

    def end() -> None:
        nonlocal depth, seconds
        depth -= 1
        bars[0].update()
        if not depth:
            bars[0].clear()
            seconds += time.perf_counter() - since

    with ExitStack() as stack, ops.compilations(begin, end):
        yield begun
    if begun:
        functions = "1 function" if len(begun) == 1 else f"{len(begun)} functions"
        say(f"{what}: compiled {functions} in {duration(seconds)}; {ops.compiled}")


class OfSome(Objective):
    """An objective that gives the gradients of some parameters only."""

    def __init__(self, objective: Objective, names: Sequence[str]) -> None:
        self.objective, self.names = objective, names

    def __call__(
        self, model: Transformer, ids: NDArray, targets: NDArray, memory: Memory | None, rng: Noise, step: int
    ) -> Gradients:
        """See `Objective`."""
        losses, memory, grads = self.objective(model, ids, targets, memory, rng, step)
        return losses, memory, {name: grads[name] for name in self.names}


def rehearse(
    model: Transformer, objective: Objective, segments: Segments, text: Text, config: TrainConfig, done: int = 0
) -> float:
    """Make a few training steps and evaluations with a copy: all kernels that a stage needs are compiled afterwards.

    Model and objective are not changed. Returns about how many seconds the stage takes after the steps that are `done`.
    """
    ops = model.ops
    replica = dataclasses.replace(model, params=dict(model.params))
    minimised = copy.deepcopy(objective)
    training = Training.start(replica, segments, config, minimised, np.random.default_rng(0))
    # large parameters are not updated: copies and averages of them would take as much memory as the training
    groups = {name: group for name, group in training.optimizer.groups.items() if model.params[name].size <= SMALL}
    training.optimizer.groups = groups
    training.objective = OfSome(minimised, list(groups))
    replica.params |= {name: ops.to_device(ops.to_host(model.params[name]).copy()) for name in groups}
    # a piece of the text, long enough to fill the memory and to read with it
    piece = text.valid[: model.config.M + 2 * model.config.T + 1]
    step = look = 0.0
    with suppress(NotFiniteError):  # the real training reports it
        with ops.compiling_ahead() as others:
            if others is not None:
                train_step(dataclasses.replace(training, model=dataclasses.replace(replica, ops=others)))
        # without memory, with it, and once more where that is quick, with all kernels compiled
        for again in range(3):
            start = time.perf_counter()
            train_step(training)
            ops.synchronize()
            step = time.perf_counter() - start
            if again and step > SLOW:
                break
        for _ in range(2):
            start = time.perf_counter()
            evaluate(replica, piece, 0)
            look = (time.perf_counter() - start) * len(text.valid[: config.evaluate_tokens or None]) / len(piece)
    return (config.steps - done) * step + validations(done, config) * look
