"""What `tinyprune gradcheck` checks: every operation with small inputs of telling shapes, and whole models.

Shapes have distinct sizes, so that no transpose goes unnoticed, and T ≥ 3, so that no softmax is trivially 1. Gates lie
below, inside and above the clip, off its kinks. The operations are those of a backend, so that compiled kernels
are checked like the textbook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.gradcheck.checker import check_gradients
from tinyprune.kernels.backend import Backend
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer

GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
# With the noise below: clipped to 0, inside on both sides of one half, clipped to 1.
LOG_ALPHA = np.array([-1.5, -0.9, -0.1, 0.2, 0.5, 1.9])
NOISE = np.array([0.2, 0.6, 0.45, 0.5, 0.4, 0.7])


@dataclass(frozen=True)
class Case:
    """Something to check: a pair of functions and the inputs, by the names of the arguments."""

    operation: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]
    inputs: dict[str, Any]


def operation_cases(ops: Backend | None = None) -> list[Case]:
    """A case (attention: several) for every operation of the backend `ops`, by default the textbook's."""
    ops = ops or Backend()
    rng = np.random.default_rng(2110)

    def normal(*shape: int, size: float = 1.0) -> np.ndarray:
        return size * rng.standard_normal(shape)

    def noise() -> np.random.Generator:
        """The same dropout in every forward."""
        return np.random.default_rng(3252)

    B, T, M, H, Dh, N, D, F, V = 2, 4, 3, 3, 5, 7, 6, 8, 9
    S = M + T
    ids = np.array([[0, 3, 8, 3], [3, 1, 0, 7]])
    targets = np.array([[3, 8, 3, 5], [1, 0, 7, 2]])
    # Three clusters: words 0-3, 4-6 and 7-10, of widths 6, 3 and 2.
    tables = [normal(4, 6), normal(3, 3), normal(4, 2)]
    projections = [normal(3, 6), normal(2, 6)]
    adaptive_ids = np.array([[0, 4, 10, 3], [8, 4, 0, 6]])

    context = {"q": normal(B, T, H, Dh), "k": normal(B, S, H, Dh), "v": normal(B, S, H, Dh)}
    relative = {"r": normal(S, H, Dh), "u": normal(H, Dh), "w": normal(H, Dh)}
    persistent = {"pk": normal(H, N, Dh, size=0.5), "pv": normal(H, N, Dh)}
    no_relative, no_persistent = dict.fromkeys(relative), dict.fromkeys(persistent)
    plain = {name: x[:, -T:] for name, x in context.items()}
    gate = {"gate": np.array([0.7, 0.0, 1.0])}
    Wo, bo = normal(H * Dh, D), normal(D)
    memory = normal(B, M, D)

    def projections_joined(n: Any, Wq: Any, Wk: Any, Wv: Any) -> tuple[Any, Any]:
        parts, cache = ops.projections_forward(n, Wq, Wk, Wv, T)
        return np.concatenate(parts, axis=1), cache

    def attention(kind: str, inputs: dict[str, Any], dropout: float = 0.0, **options: Any) -> Case:
        def forward(*arguments: Any) -> tuple[Any, Any]:
            return ops.attention_forward(*arguments, dropout=dropout, rng=noise(), **options)

        return Case(f"attention ({kind})", forward, ops.attention_backward, inputs)

    def hard_concrete(kind: str, log_alpha: np.ndarray, u: np.ndarray | None, hard: bool) -> Case:
        def forward(log_alpha: Any) -> tuple[Any, Any]:
            return ops.hard_concrete_forward(log_alpha, u, **GATE, hard=hard)

        return Case(f"hard_concrete ({kind})", forward, ops.hard_concrete_backward, {"log_alpha": log_alpha})

    def top_k(kind: str, noise: np.ndarray | None, hard: bool) -> Case:
        def forward(log_alpha: Any) -> tuple[Any, Any]:
            return ops.top_k_forward(log_alpha, noise, k=3, tau=0.7, hard=hard)

        return Case(f"top_k ({kind})", forward, ops.top_k_backward, {"log_alpha": LOG_ALPHA})

    return [
        Case(
            "linear",
            ops.linear_forward,
            ops.linear_backward,
            {"x": normal(B, T, D), "W": normal(D, F), "b": normal(F)},
        ),
        Case(
            "embedding",
            lambda ids, E: ops.embedding_forward(ids, E, dropout=0.3, rng=noise()),
            ops.embedding_backward,
            {"ids": ids, "E": normal(V, D)},
        ),
        Case(
            "layernorm",
            ops.layernorm_forward,
            ops.layernorm_backward,
            {"x": normal(B, T, D), "scale": normal(D), "bias": normal(D)},
        ),
        Case(
            "dropout",
            lambda x: ops.dropout_forward(x, 0.3, noise()),
            ops.dropout_backward,
            {"x": normal(B, T, D)},
        ),
        Case(
            "residual",
            lambda x, y: ops.residual_forward(x, y, 0.3, noise()),
            ops.residual_backward,
            {"x": normal(B, T, D), "y": normal(B, T, D)},
        ),
        Case(
            "context",
            lambda x: ops.context_forward(memory.astype(x.real.dtype), x),
            ops.context_backward,
            {"x": normal(B, T, D)},
        ),
        Case(
            "positions",
            ops.positions_forward,
            ops.positions_backward,
            {"x": normal(B, T, D), "P": normal(S, D)},
        ),
        Case(
            "projections",
            projections_joined,
            # q, k and v have a gradient each, and the checker knows one output: the three in a row along time
            lambda dout, cache: ops.projections_backward(*np.split(dout, [T, T + S], axis=1), cache),
            {"n": normal(B, S, D), "Wq": normal(D, H * Dh), "Wk": normal(D, H * Dh), "Wv": normal(D, H * Dh)},
        ),
        attention("plain causal", plain | no_relative | no_persistent | {"gate": None}),
        attention("Transformer-XL", context | relative | no_persistent | {"gate": None}, dropout=0.2),
        attention("same length", context | relative | no_persistent | gate, span=M),
        attention("persistent only", context | no_relative | persistent | gate, scale=1.5),
        attention("All-attention", context | relative | persistent | gate, dropout=0.2, span=M, scale=1.5),
        Case(
            "feedforward",
            ops.feedforward_forward,
            ops.feedforward_backward,
            {"x": normal(B, T, D), "W1": normal(D, F), "b1": normal(F), "W2": normal(F, D), "b2": normal(D)},
        ),
        Case(
            "cross_entropy",
            ops.cross_entropy_forward,
            ops.cross_entropy_backward,
            {"logits": normal(B, T, V), "targets": targets},
        ),
        Case(
            "adaptive_embedding",
            lambda ids, tables, projections: ops.adaptive_embedding_forward(
                ids, tables, projections, dropout=0.3, rng=noise()
            ),
            ops.adaptive_embedding_backward,
            {"ids": adaptive_ids, "tables": tables, "projections": projections},
        ),
        Case(
            "adaptive_softmax",
            ops.adaptive_softmax_forward,
            ops.adaptive_softmax_backward,
            {
                "x": normal(B, T, D),
                "targets": adaptive_ids,
                "tables": tables,
                "projections": projections,
                "cluster_weight": normal(2, D),
                "cluster_bias": normal(2),
                "biases": [normal(len(table)) for table in tables],
            },
        ),
        hard_concrete("soft, training", LOG_ALPHA, NOISE, hard=False),
        hard_concrete("straight-through, training", LOG_ALPHA, NOISE, hard=True),
        # Without noise and temperature the clip begins only beyond ±2.4.
        hard_concrete("soft, evaluation", 3 * LOG_ALPHA, None, hard=False),
        hard_concrete("straight-through, evaluation", 3 * LOG_ALPHA, None, hard=True),
        top_k("soft, training", 2 * NOISE, hard=False),
        top_k("straight-through, training", 2 * NOISE, hard=True),
        Case(
            "l0",
            lambda log_alpha: ops.l0_forward(log_alpha, **GATE),
            ops.l0_backward,
            {"log_alpha": LOG_ALPHA.reshape(2, 3)},
        ),
        Case(
            "layerwise_error",
            lambda gate: ops.layerwise_error_forward(gate, context["q"], Wo, bo, 1.5),
            ops.layerwise_error_backward,
            gate,
        ),
    ]


def model_case(
    kind: str = "all-attention", hard: bool = True, adaptive: bool = False, ops: Backend | None = None
) -> Case:
    """A whole model as one operation: its inputs are all parameters, its output is cross-entropy + lam · L0.

    Gated, with dropout everywhere, and with memory where the kind has one. The parameters are larger than a new
    model's, so that no gradient is small for want of signal.

    Args:
        kind: of model, see `ModelConfig`.
        hard: straight-through gates; soft ones otherwise.
        adaptive: adaptive softmax and embedding instead of the plain ones.
        ops: backend, by default the textbook.
    """
    ops = ops or Backend()
    relative = kind != "transformer"
    config = ModelConfig(
        kind=kind,
        V=11,
        L=2,
        D=12,
        H=3,
        N=5 if kind == "all-attention" else 0,
        F=0 if kind == "all-attention" else 7,
        T=4,
        M=3 if relative else 0,
        mask="same-length" if relative else "causal",
        cutoffs=(4, 7) if adaptive else (),
        div_value=2,
        dropout=0.1,
        dropout_attention=0.2,
        dropout_embedding=0.1,
    )
    gate = GateConfig(**GATE, hard=hard)
    rng = np.random.default_rng(7)
    params = init_parameters(config, rng, np.float64)
    params = {name: 2 * x + 0.3 * rng.standard_normal(x.shape) for name, x in params.items()}
    # With the noise below: shut but learning, open and learning, clipped open; then clipped shut, and these two again.
    params["layers.0.log_alpha"] = np.array([-3.1, 1.9, -0.5])
    params["layers.1.log_alpha"] = np.array([-0.3, 0.4, 0.2])
    ids, targets = rng.integers(0, config.V, (2, 2, config.T))
    memory = [rng.standard_normal((2, config.M, config.D)) for _ in range(config.L)] if relative else None
    lam = 0.1

    def forward(*arrays: Any) -> tuple[Any, Any]:
        model = Transformer(config, dict(zip(params, arrays, strict=True)), gate, ops)
        loss, _, cache = model.loss(ids, targets, memory, np.random.default_rng(1))
        l0_caches = {}
        for name in gates_of(params):
            l0, l0_caches[name] = ops.l0_forward(model.params[name], **GATE)
            loss = loss + lam * l0
        return loss, (model, cache, l0_caches)

    def backward(dout: Any, cache: Any) -> tuple:
        model, cache, l0_caches = cache
        grads = model.backward(dout, cache)
        for name in gates_of(params):
            grads[name] = grads[name] + ops.l0_backward(dout * lam, l0_caches[name])
        return tuple(grads[name] for name in params)

    softmax = ", adaptive softmax" if adaptive else ""
    return Case(f"model ({kind}{softmax}, {'straight-through' if hard else 'soft'} gates)", forward, backward, params)


def check_all(prefix: str | None = None, mode: str | None = None, ops: Backend | None = None) -> list[dict[str, Any]]:
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
    ops = ops or Backend()
    if ops.on_device:
        raise UsageError(
            "gradients are checked by differences in float64, and this backend computes in float32; its tests compare "
            "it with the textbook, whose gradients are checked: pytest tests/kernels/cuda"
        )
    if mode is None:
        mode = "complex" if ops.takes_complex else "central"
    elif mode == "complex" and not ops.takes_complex:
        raise UsageError("this backend computes with real numbers only; mode must be central, got complex")
    models = [
        model_case(kind, hard, adaptive, ops)
        for kind, hard, adaptive in (
            ("all-attention", True, False),
            ("all-attention", False, False),
            ("all-attention", False, True),
            ("transformer-xl", False, False),
            ("transformer", False, False),
        )
    ]
    worst = []
    for case in [*operation_cases(ops), *models]:
        if not case.operation.startswith(prefix or "") or (mode == "central" and "straight-through" in case.operation):
            continue
        records = check_gradients(
            case.forward,
            case.backward,
            *case.inputs.values(),
            mode=mode,
            name=case.operation,
            argument_names=list(case.inputs),
        )
        record = max(records, key=lambda r: (not r.passed, r.relative_error))
        keys = ("operation", "argument", "mode", "relative_error", "passed")
        worst.append({key: getattr(record, key) for key in keys})
    return worst


def gates_of(params: dict[str, Any]) -> list[str]:
    """Names of the gate parameters."""
    return [name for name in params if name.endswith("log_alpha")]
