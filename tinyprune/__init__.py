"""A small language model whose attention heads can be removed: a Transformer-XL whose heads own the hidden units of the
feed-forward block, every gradient by hand; the paper's All-attention beside it.

    import tinyprune as tp

    text = tp.load_text("pydoc")                                # or a file, or a folder
    model = tp.train(tp.new_model(text), text, steps=900)
    small = tp.prune(tp.gate(model, text, target_heads=16))
    tp.save(tp.finetune(small, text, steps=200), "runs/mine")   # tinyprune generate runs/mine --prompt "The"
    loss, memory, cache = model.loss(ids, targets)              # token numbers, (B, T) each
    grads = model.backward(1.0, cache)                          # by hand, for every parameter
    tp.assert_gradients(my_forward, my_backward, x, W)          # for layers of your own

Public names are loaded when they are first used, so that `import tinyprune` is instant and needs neither numba nor
matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; Python finds the same names by `__getattr__`
    from tinyprune import data as data
    from tinyprune import gradcheck as gradcheck
    from tinyprune import method as method
    from tinyprune import model as model
    from tinyprune import ops as ops
    from tinyprune import plots as plots
    from tinyprune import testing as testing
    from tinyprune import training as training
    from tinyprune.api import *  # noqa: F403
    from tinyprune.config import ChooseConfig as ChooseConfig
    from tinyprune.config import DataConfig as DataConfig
    from tinyprune.config import GateConfig as GateConfig
    from tinyprune.config import ModelConfig as ModelConfig
    from tinyprune.config import RepairConfig as RepairConfig
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
    from tinyprune.method.gates import add_gates as add_gates
    from tinyprune.method.remove import remove_closed_heads as remove_closed_heads
    from tinyprune.model.counting import count_parts as count_parts
    from tinyprune.model.parameters import init_parameters as init_parameters
    from tinyprune.model.transformer import Transformer as Transformer

__version__ = "0.3.0"

_ROOMS = ("data", "gradcheck", "method", "model", "ops", "plots", "testing", "training")
_NAMES = {
    "api": ("evaluate", "finetune", "gate", "generate", "load", "new_model", "prune", "save", "train"),
    "config": (
        "ChooseConfig",
        "DataConfig",
        "GateConfig",
        "ModelConfig",
        "RepairConfig",
        "RunConfig",
        "TrainConfig",
        "load_preset",
        "preset_names",
    ),
    "data": ("load_text",),
    "errors": ("TinypruneError",),
    "gradcheck": ("assert_gradients", "check_gradients"),
    "kernels.backend": ("Engine", "get_backend"),
    "model.counting": ("count_parts",),
    "model.parameters": ("init_parameters",),
    "model.transformer": ("Transformer",),
    "method.gates": ("add_gates",),
    "method.remove": ("remove_closed_heads",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted((*_ROOMS, *_MODULE_OF))


if not TYPE_CHECKING:  # which would believe that every name is there

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            room = importlib.import_module(f"tinyprune.{name}")
            if name in ("method", "model", "training"):  # which have no names but their modules'
                import pkgutil

                for module in pkgutil.iter_modules(room.__path__, f"tinyprune.{name}."):
                    importlib.import_module(module.name)
            return room
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'tinyprune' has no attribute {name!r}")
        return getattr(importlib.import_module(f"tinyprune.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
