"""Measure how long models of given sizes take, in turns, when no cell is being computed.

Time depends on sizes and not on weights, so that models with random weights are measured, each configuration once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.progress import progress_bar
from tinyprune.report import milliseconds_per_1k_tokens


def with_head_counts(config: ModelConfig, heads: Sequence[int]) -> ModelConfig:
    """Return the configuration with `heads[i]` heads in layer i."""
    return dataclasses.replace(config, heads=tuple(heads), head_ids=tuple(tuple(range(h)) for h in heads))


def measure_times(
    configs: Iterable[ModelConfig], backend: str = "numba", at_least: float = 0.25
) -> dict[ModelConfig, float]:
    """Measure milliseconds per 1,000 tokens of each configuration, see `report.milliseconds_per_1k_tokens`.

    The configurations have V set; equal ones are measured once, for `at_least` seconds.
    """
    ops, rng, ms = get_backend(backend), np.random.default_rng(0), {}
    first, *others = dict.fromkeys(configs)
    models = [Transformer(first, init_parameters(first, rng), ops=ops)]
    with progress_bar(others or [first], desc="timing", unit="model") as bar:
        for config in bar:
            models[1:] = [Transformer(config, init_parameters(config, rng), ops=ops)]
            tokens = rng.integers(0, config.V, 16 * first.T)
            reference, own = milliseconds_per_1k_tokens(models, tokens, at_least)
            # The first takes turns with each other: times are scaled to it, in case the machine's speed changes.
            ms[config] = own * ms.setdefault(first, reference) / reference
    return ms
