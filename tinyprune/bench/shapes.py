"""The models whose shapes are measured: their nominal operations, and random inputs, the same for every contender.

    tiny, small       the presets, with their own dropout; a vocabulary of 103 unless the preset has one
    relative-d128     the paper's kind of model: relative positions, memory 128; B 16, T 128, H 8, L 4, D 128, N 256
    relative-d256     the same with L 6, D 256, N 1024
    …-causal          the same with the causal mask in place of the same-length mask
    plain-d128, …     learned absolute positions and no memory, still with persistent vectors: what relative positions
                      and memory cost

The product of an (m, k) and a (k, n) matrix counts as 2·m·k·n operations, forward and backward together as three times
forward. For a layer with width W = heads · Dh, S = M + T and batch B a whole training step takes

    3 · [ B·T·4·D·W  (q and Wo)  +  B·S·4·D·W  (k, v)  +  B·4·T·(S + N)·W  (scores, values)
          + B·2·T·S·W + 2·S·D·W  (position scores and R·Wr, with relative positions)  +  B·T·4·D·F  (feed-forward) ].

Masked scores count; softmax, norms, optimizer, embedding and the output layer do not. A feed-forward block of width
F = N would take as many operations as N persistent vectors. Attention alone is the terms with S but without D. So the
four shapes of D 128 and 256 take 13.0 and 82.7 GFLOP a step with relative positions, 8.1 and 62.8 without.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.config import ModelConfig, TrainConfig, load_preset
from tinyprune.errors import UsageError
from tinyprune.model.parameters import Parameters, init_parameters
from tinyprune.model.transformer import Memory
from tinyprune.pretrained import find_model

TOKENS = 64  # that a decoder reads in a turn
VOCABULARY = 103  # characters of the `pydoc` corpus
# every contender's training step: AdamW and clipping
TRAIN = TrainConfig(lr=1e-4, schedule="constant", beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)


@dataclass(frozen=True)
class ModelShape:
    """A model, and how many segments it reads at once."""

    name: str
    config: ModelConfig
    B: int


SIZES = {"d128": {"L": 4, "D": 128, "N": 256}, "d256": {"L": 6, "D": 256, "N": 1024}}
KINDS = {
    "relative": {"M": 128, "mask": "same-length"},
    "relative-causal": {"M": 128, "mask": "causal"},
    "plain": {"M": 0, "mask": "causal", "positions": "learned"},
}
CONFIGS = {
    f"{kind}-{size}": ModelConfig(V=VOCABULARY, H=8, T=128, **KINDS[kind], **SIZES[size])
    for kind, size in itertools.product(KINDS, SIZES)
}
ATTENTION_SHAPES = ("tiny", "small", *CONFIGS)
STEP_SHAPES = tuple(name for name in ATTENTION_SHAPES if "causal" not in name)


def model_shape(name: str, B: int | None = None, heads: int | None = None, **changes: Any) -> ModelShape:
    """Return the model called `name`: one of the list above, any preset, or a .toml file.

    `B` replaces its number of texts, `heads` the number of heads in every layer, `changes` other fields of its
    `ModelConfig`. Raises UsageError if there is no such model, or if it has an adaptive softmax.
    """
    if name in CONFIGS:
        config, usual = CONFIGS[name], 16
    else:
        try:
            run = load_preset(name)
        except UsageError as error:
            raise UsageError(f"{error}; the benchmarks also know {', '.join(CONFIGS)}") from error
        config, usual = dataclasses.replace(run.model, V=run.model.V or VOCABULARY), run.train.B
    if config.cutoffs:
        raise UsageError(f"{name} has an adaptive softmax, which the benchmarks do not know; give one without cutoffs")
    if heads is not None:
        changes |= {"heads": (heads,) * config.L, "head_ids": ()}
    return ModelShape(name, dataclasses.replace(config, **changes), B or usual)


def attention_gflop(config: ModelConfig, B: int) -> float:
    """Count the nominal operations of one attention, all H heads, forward and backward, in 10⁹."""
    S = config.M + config.T
    scores_and_values = 4 * (S + config.attended) + (2 * S if config.relative else 0)
    return 3 * B * config.T * config.D * scores_and_values / 1e9


def step_gflop(config: ModelConfig, B: int) -> float:
    """Count the nominal operations of a training step, in 10⁹, with the heads that `config.heads` counts."""
    D, T, S, N = config.D, config.T, config.M + config.T, config.attended
    total = 0
    for heads in config.heads:
        W, units = heads * config.Dh, heads * config.N if config.networks else config.F
        total += B * (T * 4 * D * W + S * 4 * D * W + 4 * T * (S + N) * W + T * 4 * D * units)
        if config.relative:
            total += B * 2 * T * S * W + 2 * S * D * W
    return 3 * total / 1e9


def attention_arguments(shape: ModelShape) -> tuple[dict[str, NDArray], NDArray]:
    """Draw the arrays of `ops.attention_forward` by name, float32, without those the model lacks; and dout."""
    c, B = shape.config, shape.B
    rng = np.random.default_rng(0)
    S, H, Dh = c.M + c.T, c.H, c.Dh
    shapes = {"q": (B, c.T, H, Dh), "k": (B, S, H, Dh), "v": (B, S, H, Dh)}
    if c.relative:
        shapes |= {"r": (S, H, Dh), "u": (H, Dh), "w": (H, Dh)}
    if c.attended:
        shapes |= {"pk": (H, c.N, Dh), "pv": (H, c.N, Dh)}
    arrays = {name: rng.standard_normal(size, np.float32) for name, size in shapes.items()}
    for name in {"pk", "pv"} & arrays.keys():  # attention multiplies them by √Dh and √N
        arrays[name] *= np.float32(0.1)
    return arrays, rng.standard_normal((B, c.T, H, Dh), np.float32)


def parameters(shape: ModelShape) -> Parameters:
    """Draw float32 parameters; no bias is zero, so that a contender that forgets one is noticed."""
    rng = np.random.default_rng(0)
    params = init_parameters(shape.config, rng)
    return {name: x + 0.02 * rng.standard_normal(x.shape, np.float32) for name, x in params.items()}


def batch(shape: ModelShape) -> tuple[NDArray, NDArray, Memory | None]:
    """Draw tokens and the tokens that follow them, (B, T) int64, and memory, (B, M, D) float32 per layer or None."""
    c, B = shape.config, shape.B
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, c.V, (2, B, c.T))
    memory = [rng.standard_normal((B, c.M, c.D), np.float32) for _ in range(c.L)] if c.M else None
    return ids, targets, memory


def gguf_file(name: str) -> Path | None:
    """Return the GGUF file that is called so, by its path or by the package that holds it; None if there is none."""
    path = find_model(name)
    return path if path.suffix == ".gguf" and path.is_file() else None


def full_text(config: ModelConfig) -> list[int]:
    """Draw the tokens that a decoder reads: as many as its context holds, then `TOKENS`."""
    return np.random.default_rng(1).integers(0, config.V, config.M + config.T + TOKENS).tolist()


def file_text() -> list[int]:
    """Return the tokens that a decoder of a pretrained model reads, from an empty context: `TOKENS`, all different."""
    return [1, *range(100, 100 + TOKENS - 1)]


def reading(clear: Callable[[], None], step: Callable[[int], NDArray], text: list[int]) -> Workload:
    """Read the last `TOKENS` tokens of a text one by one, each with log p of what comes next.

    Args:
        clear: forgets everything read.
        step: reads a token; returns log p, (V,), in main memory, where the next token would be drawn.
        text: the tokens; what is before the last `TOKENS` is read once. If nothing is, the context begins empty.
    """

    def log_probabilities() -> dict[str, NDArray]:
        clear()
        return {"log_p": np.array([step(token) for token in text])}

    def run() -> None:
        if len(text) == TOKENS:
            clear()
        for token in text[-TOKENS:]:
            step(token)

    return Workload(run, log_probabilities)
