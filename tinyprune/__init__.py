"""tinyprune: attention-head pruning from scratch, every gradient by hand.

    import tinyprune as tp
    run = tp.load_preset("tiny")                       a configuration
    model = tp.Transformer(config, params)             a language model with forward and backward
    tp.assert_gradients(forward, backward, x, W)       is this backward right?
    tp.remove_closed_heads(model)                      a smaller model with the same logits

The names below are loaded when they are first used, so that `import tinyprune` is instant and needs neither numba nor
matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module that has it
_PUBLIC = {
    "DataConfig": "tinyprune.config",
    "GateConfig": "tinyprune.config",
    "ModelConfig": "tinyprune.config",
    "RunConfig": "tinyprune.config",
    "TrainConfig": "tinyprune.config",
    "load_preset": "tinyprune.config",
    "preset_names": "tinyprune.config",
    "TinypruneError": "tinyprune.errors",
    "get_backend": "tinyprune.kernels.backend",
    "init_parameters": "tinyprune.model.parameters",
    "Transformer": "tinyprune.model.transformer",
    "count_parts": "tinyprune.model.counting",
    "generate": "tinyprune.model.generation",
    "load_text": "tinyprune.data",
    "add_gates": "tinyprune.pruning.gates",
    "remove_closed_heads": "tinyprune.pruning.surgery",
    "assert_gradients": "tinyprune.gradcheck",
    "check_gradients": "tinyprune.gradcheck",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tinyprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
