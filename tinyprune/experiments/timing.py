"""How long models of given sizes take, measured one against the other when no cell is being computed.

Time depends on sizes alone, not on weights, so models with random ones are measured: each configuration once, however
many cells ended with it. They take turns in rounds with the whole model, and what counts is the median.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.tables import Record

B = 16  # streams that are read beside each other
ROUNDS = 9


def with_head_counts(config: ModelConfig, heads: Sequence[int]) -> ModelConfig:
    """The configuration with so many heads in each layer."""
    return dataclasses.replace(config, heads=tuple(heads), head_ids=tuple(tuple(range(h)) for h in heads))


def milliseconds_per_1k_tokens(
    configs: Iterable[ModelConfig], backend: str = "numba", rounds: int = ROUNDS
) -> dict[ModelConfig, float]:
    """Time to read 1,000 tokens (forward pass and loss, 16 streams, memory full) with a model of each configuration."""
    ops = get_backend(backend)
    rng = np.random.default_rng(0)
    models: dict[ModelConfig, tuple[Transformer, np.ndarray, Memory | None]] = {}
    for config in dict.fromkeys(configs):
        model = Transformer(config, init_parameters(config, rng), ops=ops)
        ids = rng.integers(0, config.V, (B, config.T))
        memory = None
        for _ in range(1 + -(-config.M // config.T)):
            memory = model.loss(ids, ids, memory)[1]
        models[config] = model, ids, memory
    seconds: dict[ModelConfig, list[float]] = {config: [] for config in models}
    for _ in tqdm(range(rounds), desc="timing", unit="round", disable=None):
        for config, (model, ids, memory) in models.items():
            start = time.perf_counter()
            model.loss(ids, ids, memory)
            seconds[config].append(time.perf_counter() - start)
    return {c: 1e6 * statistics.median(measured) / (B * c.T) for c, measured in seconds.items()}


def inference(configs: dict[str, ModelConfig], backend: str = "numba") -> list[Record]:
    """How size, computation and time fall as heads are removed, the same number from each layer.

    Args:
        configs: models with all their heads, by the names that the records give them.

    Returns:
        a record for each model and number of heads, with shares of the whole model's numbers.
    """
    smaller = {
        (name, h): with_head_counts(config, [h] * config.L)
        for name, config in configs.items()
        for h in range(config.H, -1, -1)
    }
    ms = milliseconds_per_1k_tokens(smaller.values(), backend, rounds=5 * ROUNDS)
    records = []
    for (name, h), config in smaller.items():
        whole = configs[name]
        numbers = {
            "parameters": count_parameters(config),
            "multiply_adds_per_token": count_multiply_adds(config),
            "ms_per_1k_tokens": ms[config],
        }
        of_whole = {
            "parameters": count_parameters(whole),
            "multiply_adds_per_token": count_multiply_adds(whole),
            "ms_per_1k_tokens": ms[smaller[name, whole.H]],
        }
        record = {"method": name, "heads_open": h * config.L, "heads_total": whole.heads_total} | numbers
        records.append(record | {f"{key}_share": numbers[key] / of_whole[key] for key in numbers})
    return records
