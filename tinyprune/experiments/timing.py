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

AT_A_TIME = 12  # models that take turns, few enough to fit into memory together


def with_head_counts(config: ModelConfig, heads: Sequence[int]) -> ModelConfig:
    """Return the configuration with `heads[i]` heads in layer i."""
    return dataclasses.replace(config, heads=tuple(heads), head_ids=tuple(tuple(range(h)) for h in heads))


def measure_times(
    configs: Iterable[ModelConfig], backend: str = "numba", at_least: float = 0.25
) -> dict[ModelConfig, float]:
    """Measure milliseconds per 1,000 tokens of each configuration, see `report.milliseconds_per_1k_tokens`.

    The configurations have V set; equal ones are measured once, for `at_least` seconds.
    """
    ops, rng = get_backend(backend), np.random.default_rng(0)
    different = list(dict.fromkeys(configs))
    first, others = different[0], different[1:]
    ms: dict[ModelConfig, float] = {}
    with progress_bar(total=len(different), desc="timing", unit="model") as bar:
        for start in range(0, max(len(others), 1), AT_A_TIME):
            group = [first, *others[start : start + AT_A_TIME]]
            models = [Transformer(config, init_parameters(config, rng), ops=ops) for config in group]
            tokens = rng.integers(0, min(config.V for config in group), 16 * first.T)
            measured = milliseconds_per_1k_tokens(models, tokens, at_least)
            # The first is in every group: times are scaled to it, in case the machine's speed changes.
            scale = ms.get(first, measured[0]) / measured[0]
            ms |= {config: scale * value for config, value in zip(group, measured, strict=True)}
            bar.update(len(group) - bool(start))
    return ms
