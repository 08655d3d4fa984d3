"""Optimizers: how parameters move once their gradients are known.

    SGD     momentum, the plain rule that the other two refine
    AdamW   a step size for each number, by its gradient's own history       (Loshchilov & Hutter 2019, Alg. 2)
    LAMB    AdamW's direction, at a length that fits each tensor             (You et al. 2020, Alg. 2)

Weight decay is decoupled in all three: it shrinks the parameter by lr · decay and never enters the gradient's history.
(In the paper decay has a schedule of its own; here, as in PyTorch, the learning rate is that schedule.)

Parameters, gradients and moments are flat dicts from names to arrays. Arithmetic happens in the dtype of the
parameters: every scalar is a Python float, which NumPy never takes as a reason to go from float32 to float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import TrainConfig
from tinyprune.errors import CheckpointError, NotFiniteError, UsageError
from tinyprune.model.parameters import is_bias


@dataclass(frozen=True)
class ParameterGroup:
    """How one parameter differs: its learning rate in units of the stage's, and its weight decay."""

    lr_multiplier: float = 1.0
    weight_decay: float = 0.0


def parameter_groups(
    names: Iterable[str], weight_decay: float, gate_lr_multiplier: float = 1.0
) -> dict[str, ParameterGroup]:
    """The group of each parameter, by its name.

    Gates (`log_alpha`) learn `gate_lr_multiplier` times as fast and do not decay, since decay would pull them to
    0 = half open. Normalisations and biases do not decay. Everything else does, by `weight_decay`.
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


def euclidean_norm(x: NDArray) -> float:
    """‖x‖ over all entries, summed in float64; inf or NaN if `x` has such entries, inf if a square overflows."""
    with np.errstate(over="ignore"):
        squares = np.square(x, dtype=np.float64)
    # ravel: summed in the order of the indices, so that the last bit does not depend on how memory is laid out.
    return math.sqrt(squares.ravel().sum())


def clip_gradients(grads: dict[str, NDArray], max_norm: float) -> float:
    """Scale all gradients together, in place, so that their common norm is at most `max_norm`.

        norm = sqrt(Σ over all entries of all gradients g²);   g ← g · max_norm / norm   where norm > max_norm

    (Pascanu et al. 2013, Alg. 1.) 0 for `max_norm` means no clipping.

    Returns:
        The norm before clipping.

    Raises:
        NotFiniteError: if the norm is NaN or infinite, naming the first gradient to blame. Nothing is scaled then.
    """
    norms = {name: euclidean_norm(grad) for name, grad in grads.items()}
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient of {name} has a norm of {norm}")
    total = math.hypot(*norms.values())
    if max_norm and total > max_norm:
        for grad in grads.values():
            grad *= max_norm / total
    return total


class Optimizer(ABC):
    """What the rules share: the count of steps, and moments (running averages), which start at zero.

    A rule says which moments it keeps of each parameter, and how one parameter is updated.
    """

    MOMENTS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: TrainConfig, groups: dict[str, ParameterGroup]) -> None:
        self.config = config
        self.groups = groups
        self.steps = 0
        self.moments: dict[str, NDArray] = {}

    @abstractmethod
    def update(self, param: NDArray, grad: NDArray, moments: list[NDArray], lr: float, decay: float) -> None:
        """Move `param` and its `moments`, in place, by one step."""

    def step(self, params: dict[str, NDArray], grads: dict[str, NDArray], lr: float) -> None:
        """Update in place every parameter that has a gradient. Gradients are not modified.

        Moments are made at the first step, for all parameters at once, whether they have a gradient or not: so the
        state of an optimizer is always complete, and `load_state` can notice when something is missing.

        Args:
            params: name -> array; has at least the names of the groups.
            grads: name -> array of the parameter's shape.
            lr: this step's learning rate, before the groups' multipliers.

        Raises:
            UsageError: for a name that is not in the groups or not in `params`, or a gradient of another shape.
            CheckpointError: if moments that were loaded do not fit the parameters. Nothing is changed in either case.
        """
        for name in (*self.groups, *grads):
            if name not in params:
                raise UsageError(f"there is no parameter {name}, although it has a group or a gradient")
        if not self.moments:
            self.moments = {f"{k}.{name}": np.zeros_like(params[name]) for k in self.MOMENTS for name in self.groups}
        for name, grad in grads.items():
            self._check(name, params[name], grad)

        self.steps += 1
        for name, grad in grads.items():
            group = self.groups[name]
            moments = [self.moments[f"{kind}.{name}"] for kind in self.MOMENTS]
            self.update(params[name], grad, moments, float(lr) * group.lr_multiplier, group.weight_decay)

    def _check(self, name: str, param: NDArray, grad: NDArray) -> None:
        if name not in self.groups:
            raise UsageError(f"{name} has a gradient but no parameter group; give the optimizer a group for it")
        if grad.shape != param.shape:
            raise UsageError(f"the gradient of {name} must have the parameter's shape {param.shape}, got {grad.shape}")
        for kind in self.MOMENTS:
            moment = self.moments[f"{kind}.{name}"]
            if (moment.shape, moment.dtype) != (param.shape, param.dtype):
                raise CheckpointError(
                    f"optimizer state {kind}.{name} is {moment.dtype} {moment.shape}, but the parameter is "
                    f"{param.dtype} {param.shape}; use the checkpoint that was saved with this model"
                )

    def state(self) -> dict[str, NDArray]:
        """What a checkpoint must hold: `steps` (0-d int64) and the moments, such as `m.layers.0.Wq`.

        The moments are the optimizer's own arrays: write or copy them before the next step.
        """
        return {"steps": np.array(self.steps, np.int64), **self.moments}

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Go on from `state`, which is copied: the next steps are bit for bit those of the optimizer that gave it.

        Raises:
            CheckpointError: if `state` is not this rule's for these groups: something missing, unknown, or of another
                kind. (That shapes fit the parameters is checked by the next `step`, which is the first to see both.)
        """
        steps = state.get("steps")
        if steps is None or steps.size != 1 or steps.dtype.kind not in "iu" or steps.item() < 0:
            raise CheckpointError("optimizer state has no count of steps; use a checkpoint saved during training")
        moments = {key: value for key, value in state.items() if key != "steps"}
        expected = {f"{kind}.{name}" for kind in self.MOMENTS for name in self.groups}
        if not moments and steps.item() == 0:
            expected = set()  # an optimizer that has not made a step
        for problem, keys in (("lacks", expected - moments.keys()), ("has unknown", moments.keys() - expected)):
            if keys:
                raise CheckpointError(
                    f"optimizer state {problem} {min(keys)} ({len(keys)} in all); use a checkpoint saved with this "
                    f"model and optimizer = {self.config.optimizer!r}"
                )
        for key, value in moments.items():
            if value.dtype.kind != "f":
                raise CheckpointError(f"optimizer state {key} must hold floating-point numbers, got {value.dtype}")
        self.steps = int(steps.item())
        self.moments = {key: value.copy() for key, value in moments.items()}


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964) and decoupled decay.

    b ← beta1 · b + g
    θ ← θ − lr · (b + decay · θ)
    """

    MOMENTS = ("momentum",)

    def update(self, param: NDArray, grad: NDArray, moments: list[NDArray], lr: float, decay: float) -> None:
        (b,) = moments
        b *= self.config.beta1
        b += grad
        param *= 1 - lr * decay
        param -= lr * b


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Alg. 2). t counts steps from 1.

        m ← beta1 · m + (1 − beta1) · g              m̂ = m / (1 − beta1ᵗ)
        v ← beta2 · v + (1 − beta2) · g²             v̂ = v / (1 − beta2ᵗ)
        θ ← θ − lr · (m̂ / (√v̂ + eps) + decay · θ)

    The divisions by 1 − betaᵗ undo that m and v started at zero.
    """

    MOMENTS = ("m", "v")

    def __init__(self, config: TrainConfig, groups: dict[str, ParameterGroup]) -> None:
        super().__init__(config, groups)
        # A number whose gradient is always 0, such as the embedding of an absent word, has direction 0 / (0 + eps).
        if config.eps < np.finfo(np.float32).tiny:
            raise UsageError(f"train.eps must be at least 1.2e-38 for {config.optimizer}, got {config.eps}; try 1e-8")

    def direction(self, grad: NDArray, m: NDArray, v: NDArray) -> NDArray:
        """m̂ / (√v̂ + eps), a new array, after `m` and `v` have taken in the gradient."""
        beta1, beta2, t = self.config.beta1, self.config.beta2, self.steps
        m *= beta1
        m += (1 - beta1) * grad
        v *= beta2
        v += (1 - beta2) * np.square(grad)
        root = np.sqrt(v / (1 - beta2**t))
        root += self.config.eps
        return m / (1 - beta1**t) / root

    def update(self, param: NDArray, grad: NDArray, moments: list[NDArray], lr: float, decay: float) -> None:
        r = self.direction(grad, *moments)
        param *= 1 - lr * decay
        param -= lr * r


class LAMB(AdamW):
    """Layer-wise adaptation of AdamW for large batches (You et al. 2020, Alg. 2, with φ(z) = z).

        r as AdamW's m̂ / (√v̂ + eps)
        d = r + decay · θ
        θ ← θ − lr · ‖θ‖ / ‖d‖ · d                   norms over one whole parameter tensor

    So a step changes every tensor by the same fraction lr of its length. The ratio ‖θ‖ / ‖d‖ is taken as 1 where
    either norm is 0: a tensor of zeros, such as a fresh bias, could not leave zero otherwise.
    """

    def update(self, param: NDArray, grad: NDArray, moments: list[NDArray], lr: float, decay: float) -> None:
        d = self.direction(grad, *moments)
        d += decay * param
        param_norm, d_norm = euclidean_norm(param), euclidean_norm(d)
        ratio = param_norm / d_norm if param_norm and d_norm else 1.0
        param -= lr * ratio * d


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "lamb": LAMB, "sgd": SGD}


def make_optimizer(config: TrainConfig, groups: dict[str, ParameterGroup]) -> Optimizer:
    """The rule that `config.optimizer` names, for the parameters in `groups`."""
    return OPTIMIZERS[config.optimizer](config, groups)
