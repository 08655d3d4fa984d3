"""Optimizers: update rules that turn gradients into new parameters.

    AdamW   a step size for each number, from the history of its gradient    (Loshchilov & Hutter 2019, Alg. 2)
    LAMB    AdamW's direction, with a length adapted to each tensor          (You et al. 2020, Alg. 2)
    scales  AdamW for the scale (and offset) of each 32 weights              (Kim et al. 2023)

Weight decay is decoupled in all: it shrinks the parameter by lr · decay and never enters the gradient's history.
(In the paper decay has a separate schedule; here, as in PyTorch, the learning rate is that schedule.)

Parameters, gradients and moments are flat dicts from names to arrays. Arithmetic happens in the dtype of the
parameters: every scalar is a Python float, which never promotes NumPy's float32 to float64. The rules themselves are
operations, so that a backend can compile them: `x_updates` for all parameters at once (`tinyprune.ops.adamw`), or
`x_update` for one at a time (`lamb`, `scales`).
"""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import TrainConfig
from tinyprune.errors import CheckpointError, NotFiniteError, UsageError
from tinyprune.model.parameters import Parameters, is_bias
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.clipping import clip_factor as clip_factor  # for loops that clip by themselves
from tinyprune.ops.engine import Engine
from tinyprune.ops.scales import scales_shape


class ParameterGroup(NamedTuple):
    """The settings that differ between parameters: learning rate, as a multiple of the stage's, and weight decay."""

    lr_multiplier: float = 1.0
    weight_decay: float = 0.0


Groups = dict[str, ParameterGroup]


def parameter_groups(names: Iterable[str], weight_decay: float, gate_lr_multiplier: float = 1.0) -> Groups:
    """Return the group of each parameter, by its name.

    Gates (`log_alpha`) learn `gate_lr_multiplier` times as fast and do not decay: decay would pull them to 0, which is
    half open. Norms and biases do not decay. Everything else does, by `weight_decay`.
    """
    groups = {}
    for name in names:
        last = name.split(".")[-1]
        if last == "log_alpha":
            groups[name] = ParameterGroup(lr_multiplier=gate_lr_multiplier)
        elif last == "scale" or is_bias(name):
            groups[name] = ParameterGroup()
        else:
            groups[name] = ParameterGroup(weight_decay=weight_decay)
    return groups


def gradient_norm(grads: Parameters, ops: Engine) -> float:
    """Return the joint norm of all gradients, sqrt(Σ over all entries of all gradients g²), summed in float64.

    Args:
        grads: name -> array; not modified.
        ops: the backend's operations.

    Raises:
        NotFiniteError: if it is NaN or infinite; the message names the first such gradient.
    """
    squares = ops.squared_norms(list(grads.values()))
    norms = {name: math.sqrt(square) for name, square in zip(grads, squares, strict=True)}
    common = math.hypot(*norms.values())
    if not math.isfinite(common):
        for name, norm in norms.items():
            if not math.isfinite(norm):
                raise NotFiniteError(f"the gradient of {name} has a norm of {norm}")
    return common


class Optimizer:
    """An update rule, its step count, and its moments (running averages), which start at zero.

    Args:
        config: the rule, `config.optimizer`, and its constants.
        groups: of each parameter that is trained.
        ops: backend that computes, by default NumPy; checks, state and moments are here.
    """

    MOMENTS = ("m", "v")

    def __init__(self, config: TrainConfig, groups: Groups, ops: Engine | None = None) -> None:
        self.config = config
        self.groups = groups
        self.ops = ops or Engine()
        self.steps = 0
        self.moments: Parameters = {}

    def step(self, params: Parameters, grads: Parameters, lr: float, grad_scale: Any = 1.0) -> None:
        """Update in place every parameter that has a gradient. Gradients are not modified.

        The first step creates the moments of all parameters, with or without a gradient. So the state of an optimizer
        is always complete, and `load_state` notices when something is missing.

        Args:
            params: name -> array; has at least the names of the groups.
            grads: name -> array of the parameter's shape and dtype.
            lr: this step's learning rate, before the groups' multipliers.
            grad_scale: factor applied to the gradients as they are read, from `clip_factor` or the backend's
                `clipping`. If it is NaN, no parameter or moment is changed.

        Raises:
            UsageError: for a name that is not in the groups or not in `params`, a gradient of another shape or dtype,
                or a parameter that is read-only or not in C order.
            CheckpointError: if loaded moments do not fit the parameters. Nothing is changed in either case.
        """
        for names in (self.groups.keys(), grads.keys()):
            if not names <= params.keys():
                missing = next(name for name in names if name not in params)
                raise UsageError(f"there is no parameter {missing}, although it has a group or a gradient")
        if not self.moments:
            for key in self._keys():
                param = params[key.split(".", 1)[1]]
                self.moments[key] = self.ops.to_device(np.zeros(self._shape(param), param.dtype))
        for name, grad in grads.items():
            self._check(name, params[name], grad)

        self.steps += 1
        if isinstance(grad_scale, Real):  # otherwise it is in a GPU's memory
            grad_scale = float(grad_scale)
        c = self.config
        constants = AdamConstants(c.beta1, c.beta2, c.eps, self.steps, grad_scale)
        ms, vs = ([self.moments[f"{kind}.{name}"] for name in grads] for kind in self.MOMENTS)
        groups = [self.groups[name] for name in grads]
        arrays = [params[name] for name in grads], list(grads.values()), ms, vs
        update = getattr(self.ops, f"{c.optimizer.removesuffix('-offsets')}_update", None)
        if update is not None:
            for *tensors, group in zip(*arrays, groups, strict=True):
                rate = float(lr) * group.lr_multiplier
                update(*tensors, lr=rate, decay=group.weight_decay, constants=constants)
        elif grads:
            multipliers, decays = map(list, zip(*groups, strict=True))
            rates: dict[str, Any] = {"lr": float(lr), "multipliers": multipliers, "decays": decays}
            getattr(self.ops, f"{c.optimizer}_updates")(*arrays, **rates, constants=constants)

    def _keys(self) -> list[str]:
        """Return the names of all moments, such as `m.layers.0.Wq`."""
        return [f"{kind}.{name}" for kind in self.MOMENTS for name in self.groups]

    def _shape(self, param: NDArray) -> tuple[int, ...]:
        """Return the shape of a parameter's moments."""
        numbers = {"scales": 1, "scales-offsets": 2}.get(self.config.optimizer)
        return scales_shape(param.shape, numbers) if numbers else param.shape

    def _check(self, name: str, param: NDArray, grad: NDArray) -> None:
        if name not in self.groups:
            otherwise = "give the optimizer a group for it"
            raise UsageError(f"{name} has a gradient but no parameter group; {otherwise}")
        if (grad.dtype, grad.shape) != (param.dtype, param.shape):
            said = f"the parameter's dtype {param.dtype} and shape {param.shape}"
            raise UsageError(f"the gradient of {name} must have {said}, got {grad.dtype} and {grad.shape}")
        if not param.flags.carray:
            got = f"strides {param.strides} for shape {param.shape}"
            raise UsageError(f"parameter {name} is updated in place and must be writeable and C-contiguous, got {got}")
        shape = self._shape(param)
        for kind in self.MOMENTS:
            moment = self.moments[f"{kind}.{name}"]
            if (moment.dtype, moment.shape) != (param.dtype, shape):
                wanted, got = f"{param.dtype} of shape {shape}", f"{moment.dtype} and {moment.shape}"
                raise CheckpointError(
                    f"optimizer state {kind}.{name} must be {wanted}, got {got}; use the checkpoint that "
                    "was saved with this model"
                )

    def state(self) -> Parameters:
        """Return what a checkpoint must hold: `steps` (0-d int64) and the moments, such as `m.layers.0.Wq`.

        The moments are the optimizer's own arrays: write or copy them before the next step.
        """
        return {"steps": np.array(self.steps, np.int64), **self.moments}

    def load_state(self, state: Parameters) -> None:
        """Continue from `state`, which is copied: the next steps are bit for bit those of the optimizer that saved it.

        Raises:
            CheckpointError: if `state` does not fit this rule and these groups: an entry is missing or unknown.
                (Shapes and dtypes are checked by the next `step`, the first to see the parameters too.)
        """
        moments = dict(state)
        steps = moments.pop("steps", None)
        if steps is None:
            raise CheckpointError("optimizer state has no count of steps; use a checkpoint saved during training")
        # none before the first step
        expected = set(self._keys()) if steps else set()
        missing, unknown = expected - moments.keys(), moments.keys() - expected
        for problem, keys in (("lacks", missing), ("has unknown", unknown)):
            if keys:
                raise CheckpointError(
                    f"optimizer state {problem} {min(keys)} ({len(keys)} in all); use a checkpoint saved "
                    f"with this model and optimizer = {self.config.optimizer!r}"
                )
        self.steps = int(steps.item())
        self.moments = {key: self.ops.to_device(value.copy()) for key, value in moments.items()}
