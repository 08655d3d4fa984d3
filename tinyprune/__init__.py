"""tinyprune: attention-head pruning from scratch, every gradient by hand.

    import numpy as np
    import tinyprune as tp

    config = tp.ModelConfig(V=50, L=2, D=32, H=4, N=8, T=16, M=16)
    model = tp.Transformer(config, tp.init_parameters(config, np.random.default_rng(0)))
    ids = np.random.default_rng(1).integers(0, 50, (2, 17))
    loss, memory, cache = model.loss(ids[:, :-1], ids[:, 1:])
    grads = model.backward(1.0, cache)                          # by hand, for every parameter
    tp.assert_gradients(tp.ops.linear_forward, tp.ops.linear_backward, np.eye(3), np.ones((3, 2)), None)

Public names are loaded when they are first used, so that `import tinyprune` is instant and needs neither numba nor
matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; Python finds the same names by `__getattr__`
    from tinyprune import data as data
    from tinyprune import gradcheck as gradcheck
    from tinyprune import model as model
    from tinyprune import ops as ops
    from tinyprune import plots as plots
    from tinyprune import pruning as pruning
    from tinyprune import testing as testing
    from tinyprune import training as training
    from tinyprune.config import DataConfig as DataConfig
    from tinyprune.config import GateConfig as GateConfig
    from tinyprune.config import ModelConfig as ModelConfig
    from tinyprune.config import RunConfig as RunConfig
    from tinyprune.config import TrainConfig as TrainConfig
    from tinyprune.config import load_preset as load_preset
    from tinyprune.config import preset_names as preset_names
    from tinyprune.data import load_text as load_text
    from tinyprune.errors import TinypruneError as TinypruneError
    from tinyprune.gradcheck import assert_gradients as assert_gradients
    from tinyprune.gradcheck import check_gradients as check_gradients
    from tinyprune.kernels.backend import Engine as Engine
    from tinyprune.kernels.backend import get_backend as get_backend
    from tinyprune.model.counting import count_parts as count_parts
    from tinyprune.model.generation import generate as generate
    from tinyprune.model.parameters import init_parameters as init_parameters
    from tinyprune.model.transformer import Transformer as Transformer
    from tinyprune.pruning.gates import add_gates as add_gates
    from tinyprune.pruning.surgery import remove_closed_heads as remove_closed_heads

__version__ = "0.1.0"

_ROOMS = ("data", "gradcheck", "model", "ops", "plots", "pruning", "testing", "training")
_NAMES = {
    "config": ("DataConfig", "GateConfig", "ModelConfig", "RunConfig", "TrainConfig", "load_preset", "preset_names"),
    "data": ("load_text",),
    "errors": ("TinypruneError",),
    "gradcheck": ("assert_gradients", "check_gradients"),
    "kernels.backend": ("Engine", "get_backend"),
    "model.counting": ("count_parts",),
    "model.generation": ("generate",),
    "model.parameters": ("init_parameters",),
    "model.transformer": ("Transformer",),
    "pruning.gates": ("add_gates",),
    "pruning.surgery": ("remove_closed_heads",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted((*_ROOMS, *_MODULE_OF))


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"tinyprune.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tinyprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinyprune.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
