"""Small models of every kind and a trainer for them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import KINDS, GateConfig, ModelConfig, TrainConfig
from tinyprune.data import Segments
from tinyprune.method.gates import add_gates
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.evaluation import evaluate
from tinyprune.training.loop import Trainer
from tinyprune.training.metrics import MetricsLog
from tinyprune.training.step import LanguageModelling

MODELS = (*KINDS, "head networks")  # what `small_config` makes
# These can have an adaptive softmax.
ADAPTIVE = tuple(kind for kind in MODELS if kind not in ("gpt2", "llama"))


def backend_with(**changes: Any) -> Engine:
    """Make a NumPy backend with some operations, or other attributes, replaced."""
    backend = Engine()
    vars(backend).update(changes)
    return backend


def small_config(kind: str = "all-attention", **options: Any) -> ModelConfig:
    """Make a configuration whose sizes all differ, so that no mix-up goes unnoticed."""
    if kind == "head networks":
        kind, options = "all-attention", {"persistent": "stream"} | options
    sizes = {"V": 11, "L": 2, "D": 12, "H": 3, "T": 5, "M": 4}
    sizes |= {"N": 6} if kind == "all-attention" else {"N": 0, "F": 7}
    if kind in ("transformer", "gpt2"):
        sizes |= {"M": 0, "mask": "causal"}
    if kind == "llama":
        sizes["kv_heads"] = 1
    return ModelConfig(kind=kind, **sizes | options)


def small_model(
    config: ModelConfig,
    gate: GateConfig | None = None,
    opened: NDArray | None = None,
    dtype: type = np.float64,
    seed: int = 0,
) -> Transformer:
    """Make a model with large parameters, no bias 0, no two gates alike; heads `opened`, (L, H) bool, or all, open."""
    rng = np.random.default_rng(seed)
    params = init_parameters(config, rng, dtype)
    params = {name: (2 * x + 0.3 * rng.standard_normal(x.shape)).astype(dtype) for name, x in params.items()}
    if gate is not None:
        params = add_gates(params, config, gate)
        for i in range(config.L):
            log_alpha = params[f"layers.{i}.log_alpha"]
            # Between −2 and 2 a soft gate is neither 0 nor 1, above 0 a hard one is open; at −4 both are closed.
            log_alpha[...] = rng.uniform(0.1 if gate.hard else -2.0, 2.0, log_alpha.size)
            if opened is not None:
                log_alpha[~opened[i]] = -4
    return Transformer(config, params, gate)


def read(model: Transformer, ids: NDArray) -> NDArray:
    """Compute hidden states (B, n, D) of a text (B, n), read in segments of T with memory."""
    memory, parts = None, []
    for start in range(0, ids.shape[1], model.config.T):
        h, memory, _ = model.forward(ids[:, start : start + model.config.T], memory)
        parts.append(h)
    return np.concatenate(parts, 1)


def small_trainer(
    directory: Path, model: Transformer, objective: Any = None, tokens: NDArray | None = None, **options: Any
) -> Trainer:
    """Make a stage "train" in `directory`, to run in `with trainer.log:`; `options`: of `TrainConfig` and `Trainer`."""
    if tokens is None:
        tokens = np.random.default_rng(1).integers(0, model.config.V, 70)
    ours = {k: options.pop(k) for k in TrainConfig.__dataclass_fields__ if k in options}
    config = TrainConfig(**{"B": 2, "lr": 0.01} | ours)
    options = {"validate": lambda model: evaluate(model, tokens[:20], 20)} | options
    options |= {"stage": "train", "path": directory / "train.safetensors", "metadata": {"note": "small"}}
    options |= {"log": MetricsLog(directory / "metrics.jsonl"), "go_on": "tinyprune train here --resume"}
    segments, rng = Segments(tokens, config.B, model.config.T), np.random.default_rng(3)
    return Trainer.start(model, segments, config, objective or LanguageModelling(), rng, **options)
