"""Warm-up: compile kernels and tell the user so; time a step to estimate how long a stage takes.

CPU kernels are compiled once per machine, GPU kernels at every start.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
from tqdm import tqdm

from tinyprune.config import TrainConfig
from tinyprune.data import Segments, Text
from tinyprune.errors import NotFiniteError
from tinyprune.kernels.backend import Backend
from tinyprune.model.transformer import Transformer
from tinyprune.progress import say, silent
from tinyprune.training.step import LanguageModelling, Training, train_step


@contextmanager
def announced(ops: Backend) -> Iterator[None]:
    """Say on standard error when the backend `ops` compiles kernels, and show on a terminal which."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def tell(name: str) -> None:
            if not bars:
                say(ops.compiling)
                form = "{n} functions in {elapsed}{postfix}"
                bars.append(
                    stack.enter_context(tqdm(bar_format=form, dynamic_ncols=True, leave=False, disable=silent()))
                )
            bars[0].set_postfix_str(name, refresh=False)
            bars[0].update()

        stack.enter_context(ops.compilations(tell))
        yield


def measure_seconds(model: Transformer, segments: Segments, text: Text, config: TrainConfig) -> tuple[float, float]:
    """Time one training step and one evaluation on the validation split, in seconds; the model is not changed.

    Each is done twice and the second is timed, since the first meets cold caches or uncompiled kernels. On a GPU the
    third is timed, since kernels that read memory are compiled in the second step.
    """
    ops = model.ops
    copies = {name: ops.to_device(ops.to_host(value).copy()) for name, value in model.params.items()}
    copy = dataclasses.replace(model, params=copies)
    training = Training.start(copy, segments, config, LanguageModelling(), np.random.default_rng(0))
    ids, targets, _ = segments.batch(0)
    step = look = 0.0
    with announced(ops), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(3 if ops.on_device else 2):
            start = time.perf_counter()
            with suppress(NotFiniteError):  # the real training reports it
                train_step(training)
            ops.synchronize()
            step = time.perf_counter() - start
            start = time.perf_counter()
            float(model.loss(ids[:1], targets[:1])[0])  # float() waits for a GPU
            look = time.perf_counter() - start
    return step, look * len(text.valid) / model.config.T
