"""Whole models as cases of gradcheck, and the check of everything."""

from typing import Any

import numpy as np

from tinyprune import ops as textbook
from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.gradcheck.catalogue import GATE, Case, operation_cases
from tinyprune.gradcheck.checker import check_gradients
from tinyprune.io.progress import progress_bar
from tinyprune.io.tables import Record
from tinyprune.model.parameters import Parameters, init_parameters
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine

LAM = 0.1
# With the noise below: shut but learning, open and learning, clipped open; then clipped shut, and these two again.
LOG_ALPHAS = np.array([[-3.1, 1.9, -0.5], [-0.3, 0.4, 0.2]])
# Clipped shut: both heads of one group; one of another.
LLAMAS_LOG_ALPHAS = np.array([[-9.0, -9.0, 1.9, -0.5], [0.4, 0.2, -9.0, -0.3]])


# The smallest sizes of a model that has everything: dropout everywhere, and memory where there can be.
SIZES: dict[str, Any] = {"V": 11, "L": 2, "D": 12, "H": 3, "N": 0, "F": 7, "T": 4, "M": 3, "div_value": 2}
SIZES |= {"mask": "same-length", "dropout": 0.1, "dropout_attention": 0.2, "dropout_embedding": 0.1}
OF_KIND: dict[str, dict[str, Any]] = {
    "all-attention": {"N": 5, "F": 0},
    "transformer": {"M": 0, "mask": "causal"},
    "gpt2": {"M": 0, "mask": "causal"},
    "llama": {"D": 16, "H": 4, "kv_heads": 2},
}


def make_config(kind: str, adaptive: bool, **options: Any) -> ModelConfig:
    """Make the smallest configuration of a kind; with blocks of units there are as many as heads."""
    sizes = SIZES | OF_KIND.get(kind, {})
    if "U" in options:
        sizes["F"] = sizes["H"] * options["U"]
    if adaptive:
        sizes["cutoffs"] = (4, 7)
    return ModelConfig(kind=kind, **sizes, **options)


def make_parameters(config: ModelConfig, rng: np.random.Generator) -> Parameters:
    """Draw gated parameters, larger than a new model's, so that no gradient is small for want of signal."""
    params = init_parameters(config, rng, np.float64)
    params = {name: 2 * x + 0.3 * rng.standard_normal(x.shape) for name, x in params.items()}
    values = LLAMAS_LOG_ALPHAS if config.kind == "llama" else LOG_ALPHAS
    # blocks of units have the heads' values
    names = zip(Parts(config).gates, [*values, *values], strict=False)
    return params | {name: own.copy() for name, own in names}


def model_case(
    kind: str = "all-attention",
    hard: bool = True,
    adaptive: bool = False,
    ops: Engine | None = None,
    frozen: bool = False,
    **options: Any,
) -> Case:
    """Return a gated model as one operation: its inputs are all parameters, its output is cross-entropy + LAM · L0.

    Args:
        kind: of model, see `ModelConfig`.
        hard: straight-through gates; soft ones otherwise.
        adaptive: adaptive softmax and embedding instead of the plain ones.
        ops: backend, by default the textbook.
        frozen: the inputs are the gates alone, and the weights have no gradients.
        options: further fields of `ModelConfig`.
    """
    ops, rng = ops or Engine(), np.random.default_rng(7)
    config = make_config(kind, adaptive, **options)
    gate, params = GateConfig(**GATE, hard=hard), make_parameters(config, rng)
    gates = [name for name in params if name.endswith("log_alpha")]
    ids, targets = rng.integers(0, config.V, (2, 2, config.T))
    # A memory that is not full yet: the last row of R is not read.
    memory = None
    if config.M:
        memory = [rng.standard_normal((2, config.M - 1, config.D)) for _ in range(config.L)]
    inputs = {name: params[name] for name in (gates if frozen else params)}

    def forward(*arrays: Any) -> tuple[Any, Any]:
        given = dict(zip(inputs, arrays, strict=True))
        fixed = {name: x.astype(arrays[0].dtype) for name, x in params.items() if name not in given}
        model = Transformer(config, {name: (fixed | given)[name] for name in params}, gate, ops)
        loss, _, cache = model.loss(ids, targets, memory, np.random.default_rng(1), frozen=frozen)
        l0_caches = {}
        for name in gates:
            l0, l0_caches[name] = textbook.l0_forward(model.params[name], **GATE)
            loss = loss + LAM * l0
        return loss, (model, cache, l0_caches)

    def backward(dout: Any, cache: Any) -> tuple:
        model, cache, l0_caches = cache
        grads = model.backward(dout, cache)
        for name in gates:
            grads[name] = grads[name] + textbook.l0_backward(dout * LAM, l0_caches[name])
        assert list(grads) == list(inputs)
        return tuple(grads.values())

    about = [kind]
    if adaptive:
        about.append("adaptive softmax")
    about += [value if isinstance(value, str) else f"{key} {value}" for key, value in options.items()]
    if frozen:
        about.append("frozen weights")
    about.append("straight-through gates" if hard else "soft gates")
    return Case(f"model ({', '.join(about)})", forward, backward, inputs)


def model_cases(ops: Engine) -> list[Case]:
    """Return cases of every kind of model, and of what only some models have."""
    soft: list[dict[str, Any]] = [
        {},
        {"adaptive": True},
        {"norm": "rmsnorm"},
        {"persistent": "stream"},
        *({"kind": kind} for kind in ("transformer-xl", "transformer", "gpt2", "llama")),
        {"kind": "llama", "tied": False, "bias": "layers"},
        *({"kind": kind, "head_norms": True} for kind in ("all-attention", "llama")),
        *({"kind": kind, "frozen": True} for kind in ("llama", "transformer")),
        {"frozen": True, "persistent": "stream"},
        *({"kind": kind, "U": 2} for kind in ("transformer-xl", "gpt2", "llama")),
        *({"kind": kind, "U": 2, "frozen": True} for kind in ("transformer-xl", "llama")),
    ]
    return [model_case(ops=ops), *(model_case(hard=False, ops=ops, **options) for options in soft)]


def check_all(prefix: str | None = None, mode: str | None = None, ops: Engine | None = None) -> list[Record]:
    """Check operations and models; for each its worst argument, as a flat record.

    Straight-through gates have no central difference: their forward pass is a step, whose slope is 0 or infinite. They
    are left out in that mode; the complex step carries the derivative past the step.

    Args:
        prefix: only those whose name begins so; None for all.
        mode: "complex" or "central"; None for "complex" where the backend takes complex numbers, else "central".
        ops: backend, by default the textbook.

    Raises:
        UsageError: for "complex" with a backend that refuses complex numbers, and for one that computes on a GPU.
    """
    ops = ops or Engine()
    if ops.on_device:
        raise UsageError(
            "gradients are checked by differences in float64, and this backend computes in float32; its tests "
            "compare it with the textbook, whose gradients are checked: pytest tests/kernels/cuda"
        )
    if mode == "complex" and not ops.takes_complex:
        raise UsageError("this backend computes with real numbers only; mode must be central, got complex")
    if mode is None:
        mode = "complex" if ops.takes_complex else "central"
    cases = [*operation_cases(ops), *model_cases(ops)]
    cases = [case for case in cases if case.operation.startswith(prefix or "")]
    if mode == "central":
        cases = [case for case in cases if "straight-through" not in case.operation]
    worst = []
    bar = progress_bar(cases, desc="gradcheck", unit="case")
    for case in bar:
        bar.set_postfix_str(case.operation)
        options = {"mode": mode, "name": case.operation, "argument_names": list(case.inputs)}
        records = check_gradients(case.forward, case.backward, *case.inputs.values(), **options)
        record = max(records, key=lambda r: (not r.passed, r.relative_error))
        keys = ("operation", "argument", "mode", "relative_error", "passed")
        worst.append({key: getattr(record, key) for key in keys})
    return worst
