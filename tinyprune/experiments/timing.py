"""How long models of given sizes take, measured one against the other when no cell is being computed.

Time depends on sizes alone, not on weights, so models with random ones are measured: each configuration once, however
many cells ended with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.progress import silent
from tinyprune.report import milliseconds_per_1k_tokens

AT_A_TIME = 12  # models that take turns: as many as surely fit into memory beside each other


def with_head_counts(config: ModelConfig, heads: Sequence[int]) -> ModelConfig:
    """The configuration with so many heads in each layer."""
    return dataclasses.replace(config, heads=tuple(heads), head_ids=tuple(tuple(range(h)) for h in heads))


def measure_times(
    configs: Iterable[ModelConfig], backend: str = "numba", at_least: float = 0.25
) -> dict[ModelConfig, float]:
    """Milliseconds to read 1,000 tokens with a model of each configuration, see `report.milliseconds_per_1k_tokens`.

    Args:
        configs: with V set; equal ones are measured once.
        backend: whose operations compute.
        at_least: seconds for which each is measured.
    """
    ops, rng = get_backend(backend), np.random.default_rng(0)
    different = list(dict.fromkeys(configs))
    first, others = different[0], different[1:]
    ms: dict[ModelConfig, float] = {}
    with tqdm(total=len(different), desc="timing", unit="model", disable=silent()) as bar:
        for start in range(0, max(len(others), 1), AT_A_TIME):
            group = [first, *others[start : start + AT_A_TIME]]
            models = [Transformer(config, init_parameters(config, rng), ops=ops) for config in group]
            tokens = rng.integers(0, min(config.V for config in group), 16 * first.T)
            measured = milliseconds_per_1k_tokens(models, tokens, at_least)
            # the first is in every group, so that a machine that gets slower does so for all
            scale = ms.get(first, measured[0]) / measured[0]
            ms |= {config: scale * value for config, value in zip(group, measured, strict=True)}
            bar.update(len(group) - bool(start))
    return ms
