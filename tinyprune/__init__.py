"""tinyprune: attention-head pruning from scratch, every gradient by hand.

    import numpy as np
    import tinyprune as tp

    config = tp.ModelConfig(V=50, L=2, D=32, H=4, N=8, T=16, M=16)
    model = tp.Transformer(config, tp.init_parameters(config, np.random.default_rng(0)))
    ids = np.random.default_rng(1).integers(0, 50, (2, 17))
    loss, memory, cache = model.loss(ids[:, :-1], ids[:, 1:])
    grads = model.backward(1.0, cache)                          # by hand, for every parameter
    tp.assert_gradients(tp.ops.linear_forward, tp.ops.linear_backward, np.eye(3), np.ones((3, 2)), None)

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


# subpackages that are public as a whole
_ROOMS = {"ops", "gradcheck", "model", "data", "training", "pruning", "plots"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"tinyprune.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tinyprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_ROOMS})
