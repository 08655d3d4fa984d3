"""What `tinyprune gradcheck` checks: every operation with small inputs of telling shapes, and whole models.

Each operation has one entry, from which the tests take everything: its gradients are measured, every backend is held
against the textbook in other sizes, and bugs are planted in it. Sizes are distinct, so that no transpose goes
unnoticed, and T ≥ 3, so that no softmax is trivially 1. Gates lie below, inside and above the clip, off its kinks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tinyprune import ops as textbook
from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.gradcheck.checker import check_gradients, leaves
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.attention_step import BlockWeights
from tinyprune.ops.cross_entropy import log_softmax
from tinyprune.ops.engine import Engine
from tinyprune.progress import progress_bar

GATE: dict[str, Any] = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
# With the noise below: clipped to 0, inside on both sides of one half, clipped to 1.
LOG_ALPHA = np.array([-1.5, -0.9, -0.1, 0.2, 0.5, 1.9])
NOISE = np.array([0.2, 0.6, 0.45, 0.5, 0.4, 0.7])
SEED = 3252  # of dropout


@dataclass(frozen=True)
class Case:
    """Something to check: a pair of functions and the inputs, by the names of the arguments.

    Attributes:
        operation: its name, and in brackets which of its variants.
        forward: `forward(*inputs.values()) -> (out, cache)`; keyword arguments replace `constants`.
        backward: `backward(dout, cache) -> gradients`; no gradients for an operation without a backward.
        inputs: arrays of floats, lists of them or None, which have a gradient, and arrays of integers.
        constants: the operation's other arguments; `rng` is a seed, from which each forward makes its generator.
    """

    operation: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]
    inputs: dict[str, Any]
    constants: dict[str, Any] = field(default_factory=dict)


class Sizes(NamedTuple):
    """Sizes of the inputs; `lead` are the leading axes of operations that take any, by default (B, T)."""

    B: int = 2
    T: int = 4
    M: int = 3
    H: int = 3
    Dh: int = 5
    N: int = 7
    D: int = 6
    F: int = 8
    V: int = 9
    lead: tuple[int, ...] | None = None


SIZES = Sizes()


def operation_cases(ops: Engine | None = None, sizes: Sizes = SIZES) -> list[Case]:
    """Return a case for every operation of `ops` (by default the textbook) with a gradient; for attention several."""
    ops = ops or Engine()
    normal, integers = inputs_from(2124)
    B, T, M, H, Dh, N, D, F, V, _ = sizes
    lead = (B, T) if sizes.lead is None else sizes.lead
    S = M + T

    def case(operation: str, inputs: dict[str, Any], variant: str = "", **constants: Any) -> Case:
        """The operation of this name; arguments that have no gradient are `constants`."""
        forward = with_constants(ops, function(ops, f"{operation}_forward"), list(inputs), constants)
        run_backward = function(ops, f"{operation}_backward")

        def backward(dout: Any, cache: Any) -> Any:
            """Take one dout for each output."""
            gradients = run_backward(*(dout if isinstance(dout, tuple) else (dout,)), cache)
            # those of frozen parameters, which are `constants`
            return tuple(x for x in gradients if x is not None) if constants.get("frozen") else gradients

        name = f"{operation} ({variant})" if variant else operation
        return Case(name, forward, backward, inputs, constants)

    def attention(variant: str, *parts: dict[str, Any], **options: Any) -> Case:
        names = ("q", "k", "v", "r", "u", "w", "pk", "pv", "gate")
        inputs = dict.fromkeys(names) | {name: x for part in parts for name, x in part.items()}
        return case("attention", inputs, variant, rng=SEED, **options)

    words, tied, head = clusters(normal, D, V)
    frequent = words - len(tied["tables"][-1])  # words of all clusters but the last
    context = {"q": normal(B, T, H, Dh), "k": normal(B, S, H, Dh), "v": normal(B, S, H, Dh)}
    relative = {"r": normal(S, H, Dh), "u": normal(H, Dh), "w": normal(H, Dh)}
    persistent = {"pk": normal(H, N, Dh, size=0.5), "pv": normal(H, N, Dh)} if N else {}
    plain = {name: x[:, M:] for name, x in context.items() if name != "q"} | {"q": context["q"]}
    gate = {"gate": np.resize([0.7, 0.0, 1.0], H)}
    Wo, bo = normal(H * Dh, D), normal(D)
    memory = normal(B, M, D)

    def linear(variant: str = "", biased: bool = True) -> Case:
        return case("linear", {"x": normal(*lead, D), "W": normal(D, F), "b": normal(F) if biased else None}, variant)

    def projections(variant: str = "", K: int = H, biased: str = "") -> Case:
        inputs = {"n": normal(B, S, D), "Wq": normal(D, H * Dh), "Wk": normal(D, K * Dh), "Wv": normal(D, K * Dh)}
        biases = {f"b{x}": normal(inputs[f"W{x}"].shape[1]) if x in biased else None for x in "qkv"}
        return case("projections", inputs | biases, variant, T=T)

    def feedforward() -> Case:
        inputs = {"x": normal(*lead, D), "W1": normal(D, F), "b1": normal(F), "W2": normal(F, D), "b2": normal(D)}
        return case("feedforward", inputs)

    shared = np.resize([0, 0, 1, 2, 2], H).tolist()

    def networks(x: Any, variant: str = "", gate: Any = None, **options: Any) -> Case:
        inputs = {"x": x, "pk": normal(H, N, D), "pb": normal(H, N), "pv": normal(H, N, D), "bo": normal(D)}
        return case("head_networks", inputs | {"gate": gate}, variant, **options)

    def frozen(whole: Case, variant: str = "frozen") -> Case:
        """The case with frozen parameters: they have no gradients, and so are constants."""
        inputs = {name: x for name, x in whole.inputs.items() if name in ("x", "n", "gate") and x is not None}
        parameters = {name: x for name, x in whole.inputs.items() if name not in inputs}
        return case(whole.operation.split(" (")[0], inputs, variant, **parameters, **whole.constants, frozen=True)

    def student() -> dict[str, Any]:
        return {"logits": normal(*lead, V), "targets": integers(V, lead)}

    hard_concrete, top_k, absent = "hard_concrete", "top_k", "last cluster absent"
    return [
        linear(),
        linear("no bias", biased=False),
        case("embedding", {"ids": integers(V, lead), "E": normal(V, D)}, dropout=0.3, rng=SEED),
        case("embedding", {"ids": integers(V, lead), "E": normal(V, D)}, "evaluation", dropout=0.3, rng=None),
        # eps is large: a small one would not show, and amplifies rounding in rows that are nearly constant
        case("layernorm", {"x": normal(*lead, D), "scale": normal(D), "bias": normal(D)}, eps=0.1),
        case("dropout", {"x": normal(*lead, D)}, rate=0.3, rng=SEED),
        case("dropout", {"x": normal(*lead, D)}, "evaluation", rate=0.3, rng=None),
        case("residual", {"x": normal(*lead, D), "y": normal(*lead, D)}, dropout=0.3, rng=SEED),
        case("context", {"x": normal(B, T, D)}, m=memory),
        case("context", {"x": normal(B, T, D)}, "no memory", m=None),
        case("positions", {"x": normal(B, T, D), "P": normal(S, D)}),
        case("positions", {"x": normal(B, T, D), "P": None}, "none"),
        projections(),
        attention("plain causal", plain),
        attention("Transformer-XL", context, relative, dropout=0.2),
        attention("same length", context, relative, gate, span=M),
        attention("persistent only", context, persistent, gate, scale=1.5),
        attention("All-attention", context, relative, persistent, gate, dropout=0.2, span=M, scale=1.5),
        feedforward(),
        case("cross_entropy", student()),
        case("adaptive_embedding", {"ids": integers(words, lead), **tied}, dropout=0.3, rng=SEED),
        case("adaptive_embedding", {"ids": integers(frequent, lead), **tied}, absent, rng=None),
        case("adaptive_softmax", {"x": normal(*lead, D), "targets": integers(words, lead), **tied, **head}),
        case("adaptive_softmax", {"x": normal(*lead, D), "targets": integers(frequent, lead), **tied, **head}, absent),
        case(hard_concrete, {"log_alpha": LOG_ALPHA}, "soft, training", u=NOISE, **GATE, hard=False),
        case(hard_concrete, {"log_alpha": LOG_ALPHA}, "straight-through, training", u=NOISE, **GATE, hard=True),
        # Without noise and temperature the clip begins only beyond ±2.4.
        case(hard_concrete, {"log_alpha": 3 * LOG_ALPHA}, "soft, evaluation", u=None, **GATE, hard=False),
        case(hard_concrete, {"log_alpha": 3 * LOG_ALPHA}, "straight-through, evaluation", u=None, **GATE, hard=True),
        case(top_k, {"log_alpha": LOG_ALPHA}, "soft, training", noise=2 * NOISE, k=3, tau=0.7, hard=False),
        case(top_k, {"log_alpha": LOG_ALPHA}, "straight-through, training", noise=2 * NOISE, k=3, tau=0.7, hard=True),
        case("l0", {"log_alpha": LOG_ALPHA.reshape(2, 3)}, **GATE),
        case("layerwise_error", gate, o=context["q"], Wo=Wo, bo=bo, scale=1.5),
        # A new operation comes last: inputs are drawn in this order, and those of the others stay as they are.
        case("rmsnorm", {"x": normal(*lead, D), "scale": normal(D)}, eps=0.1),
        networks(normal(*lead, D), gate=gate["gate"], scale=1.5),
        networks(normal(*lead, D), "no gates"),
        case("distillation", student(), teacher=log_softmax(normal(*lead, V)), share=0.3),
        projections("shared keys and values, biases", (H + 1) // 2, "qkv"),
        projections("no bias of keys", biased="qv"),
        frozen(linear()),
        frozen(projections(K=(H + 1) // 2, biased="qkv")),
        frozen(feedforward()),
        frozen(networks(normal(*lead, D), gate=gate["gate"], scale=1.5)),
        frozen(networks(normal(*lead, D), scale=1.5), "frozen, no gates"),
        case("rotary", {"x": normal(B, T, H, 2 * Dh)}, base=10.0),
        case("rotary", {"x": normal(B, T, H, 2 * Dh)}, "later positions", first=7),
        case("rotary", {"x": normal(B, T, H, 2 * Dh)}, "none", base=None),
        case("gelu", {"a": normal(*lead, F)}),
        case("swiglu", {"a": normal(*lead, F), "b": normal(*lead, F)}),
        case("repeat_heads", {"x": normal(B, S, max(shared, default=-1) + 1, Dh)}, index=shared),
        case("repeat_heads", {"x": normal(B, S, H, Dh)}, "each its own", index=None),
        case("embedding", {"ids": integers(V, lead), "E": normal(V, D)}, "own scale", scale=0.6, dropout=0.3, rng=SEED),
    ]


def other_cases(ops: Engine | None = None, sizes: Sizes = SIZES) -> list[Case]:
    """A case for every operation without a gradient, for comparing backends. What is written in place is copied first
    and is part of the output."""
    ops = ops or Engine()
    normal, _ = inputs_from(1911)
    B, T, M, H, Dh, N, D, F, V, _ = sizes
    lead = (B, T) if sizes.lead is None else sizes.lead

    def case(operation: str, inputs: dict[str, Any], written: tuple[str, ...] = (), **constants: Any) -> Case:
        """The operation of this name, which writes to those of its inputs that are `written`."""
        own: dict[str, Callable[..., Any]] = {"attention_step": step, "clipping": clip}
        own["AttentionStep"] = read_text
        name = operation.split(" (")[0]
        run = own.get(name) or function(ops, name)

        def copying(**arguments: Any) -> tuple[Any, None]:
            copies = {name: copied(ops, arguments[name]) for name in written}
            out = run(**arguments | copies)
            return (*(() if out is None else (out,)), *copies.values()) if written else out, None

        return Case(operation, with_constants(ops, copying, list(inputs), constants), no_backward, inputs, constants)

    def step(x: Any, keys: Any, values: Any, read: int, r: Any = None, n: Any = None, **weights: Any) -> Any:
        return ops.attention_step(x, keys, values, r, read, BlockWeights(**weights), n)

    def read_text(x: Any, C: int, Dh: int, r: Any = None, n: Any = None, **weights: Any) -> tuple:
        read_one = ops.AttentionStep(C, Dh, r, BlockWeights(**weights))
        return tuple(read_one(*rows) for rows in zip(x, [None] * len(x) if n is None else n, strict=True))

    def clip(**arguments: Any) -> list[float]:
        return [float(x) for x in ops.clipping(**arguments)]

    def rotary_block() -> dict[str, Any]:
        """Weights as Llama's, with biases; heads are twice as wide, since only an even width can be rotated."""
        products = {name: normal(D, 2 * W, size=0.5) for name in ("Wq", "Wk", "Wv")}
        biases = {name: normal(2 * W) for name in ("bq", "bk", "bv")}
        return products | {"Wo": normal(2 * W, D, size=0.5)} | biases

    _, tied, head = clusters(normal, D, V)
    C, W, heads = M + 1, H * Dh, list(range(H))[::-2]
    parameter = {"param": normal(*lead, D), "grad": normal(*lead, D)}
    constants = AdamConstants(beta1=0.8, beta2=0.95, eps=1e-3, step=3, grad_scale=0.7)
    moments = {"m": normal(*lead, D), "v": np.abs(normal(*lead, D))}
    own_rates = {"multipliers": [1.0, 2.0], "decays": [0.3, 0.0]}
    several = {f"{name}s": [x, x[..., :1].copy()] for name, x in (parameter | moments).items()}
    block = {
        "r": normal(C + 2, H, Dh),
        "ln_scale": normal(D),
        "ln_bias": normal(D),
        "Wq": normal(D, W, size=0.5),
        "Wk": normal(D, W, size=0.5),
        "Wv": normal(D, W, size=0.5),
        "Wo": normal(W, D, size=0.5),
        "bo": normal(D),
        "u": normal(H, Dh),
        "w": normal(H, Dh),
        **({"pk": normal(H, N, Dh, size=0.5), "pv": normal(H, N, Dh, size=0.5)} if N else {}),
        "gate": np.resize([0.7, 0.0, 1.0], H),
    }
    token = {"x": normal(D), "keys": normal(C, H, Dh), "values": normal(C, H, Dh)}
    text = {"x": normal(2 * C + 1, D)}
    return [
        case("add", {"a": normal(*lead, D), "b": normal(*lead, D)}),
        case("squared_norm", {"x": normal(*lead, D)}),
        case("squared_norms", {"arrays": [normal(*lead, D), normal(F)]}),
        case("log_softmax", {"logits": normal(*lead, V)}),
        case("adaptive_log_probabilities", {"x": normal(*lead, D), **tied, **head}),
        case("take_slices", {"x": normal(B, H * Dh, D)}, index=heads, axis=1, width=Dh),
        case("put_slices", {"part": normal(B, len(heads) * Dh, D)}, index=heads, axis=1, n=H, width=Dh),
        case("head_difference", {"o": normal(B, T, H, Dh), "Wo": normal(W, D)}, scale=1.5),
        case("lamb_update", parameter | moments, ("param", "m", "v"), lr=0.1, decay=0.3, constants=constants),
        case("adamw_updates", several, ("params", "ms", "vs"), lr=0.1, **own_rates, constants=constants),
        case("attention_step", token | block, ("keys", "values"), read=C + 1, scale=1.5),
        case("AttentionStep", text | block, C=C, Dh=Dh, scale=1.5),
        case("sigmoid", {"x": LOG_ALPHA}),
        case("p_open", {"log_alpha": LOG_ALPHA}, **GATE),
        case(
            "attention_step (rotary)",
            {"x": normal(D), "n": normal(D), **{name: normal(C, H, 2 * Dh) for name in ("keys", "values")}}
            | rotary_block(),
            ("keys", "values"),
            read=C + 1,
            rope_base=100.0,
        ),
        case(
            "AttentionStep (rotary)",
            {"x": normal(2 * C + 1, D), "n": normal(2 * C + 1, D)} | rotary_block(),
            C=C,
            Dh=2 * Dh,
            rope_base=100.0,
        ),
        case("clipping", {"grads": [normal(*lead, D), normal(F)]}, losses=[0.7], max_norm=0.5),
        *primitive_cases(case, sizes),
    ]


def primitive_cases(case: Callable[..., Case], sizes: Sizes) -> list[Case]:
    """Return cases for what compositions are made of; `case` as in `other_cases`."""
    normal, integers = inputs_from(2021)
    B, T, M, H, Dh, N, D, F, V, _ = sizes
    lead = (B, T) if sizes.lead is None else sizes.lead
    product = {"a": normal(*lead, D), "b": normal(D, F)}
    units = {"products": normal(*lead, H * N), "r": np.maximum(normal(*lead, H * N), 0)}
    order, several = np.arange(B)[::-1], integers(V, (T,))
    return [
        case("matmul", product),
        case("matmul (bias, ReLU)", product | {"bias": normal(F)}, relu=True),
        case("matmul (where)", product | {"where": np.maximum(normal(*lead, F), 0)}),
        case("matmul (onto)", product | {"onto": normal(*lead, F)}, ("onto",)),
        case("weight_gradient", {"x": normal(*lead, D), "dout": normal(*lead, F)}),
        case("column_sums", {"x": normal(*lead, D)}),
        case("take_rows", {"x": normal(V, D), "index": several}),
        case("add_rows", {"x": normal(B + 1, D), "index": order, "rows": normal(B, D)}, ("x",)),
        case("sum_rows", {"rows": normal(T, D), "index": several}, n=V),
        case("multiply_rows", {"x": normal(H, N, D), "factors": normal(H)}),
        case("row_dots", {"x": normal(H, N, D), "y": normal(H, N, D)}, factor=1.5),
        case("concatenate", {"arrays": [normal(B, M, D), normal(B, T, D)]}, axis=1),
        case("concatenate (rows)", {"arrays": [normal(T, D), normal(M, D), normal(T, D)]}),
        case("units_gradient", units | {"weights": np.resize([0.7, 0.0, 1.0], H)}, scale=1.5),
        case("sum_heads", {"x": normal(B, T, H, Dh)}, index=np.resize([0, 0, 1, 3], H).tolist(), K=4),
        case("rotate", {"x": normal(B, T, H, 2 * Dh)}, base=10.0, back=True),
    ]


def function(ops: Engine, name: str) -> Callable[..., Any]:
    """Return an operation of the engine, or one that needs none, such as those of gates."""
    return getattr(ops if hasattr(ops, name) else textbook, name)


def inputs_from(seed: int) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """What draws inputs: `normal(*shape, size=1.0)` and `integers(end, shape)`."""
    rng = np.random.default_rng(seed)
    return (
        lambda *shape, size=1.0: size * rng.standard_normal(shape),
        lambda end, shape: np.asarray(rng.integers(0, end, shape)),
    )


def clusters(normal: Callable[..., np.ndarray], D: int, V: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """An adaptive vocabulary of three clusters: how many words, tables and projections, and the softmax's others."""
    heights, widths = (V // 2, V // 3, max(V - 5, 1)), (D, max(D // 2, 1), max(D // 3, 1))
    # logits of about 1, whatever D is: large ones would amplify the rounding of float32
    tables = [normal(*shape, size=shape[1] ** -0.5) for shape in zip(heights, widths, strict=True)]
    tied = {"tables": tables, "projections": [normal(width, D) for width in widths[1:]]}
    biases = [normal(height) for height in heights]
    return sum(heights), tied, {"cluster_weight": normal(2, D), "cluster_bias": normal(2), "biases": biases}


def with_constants(
    ops: Engine, run: Callable[..., Any], names: list[str], constants: dict[str, Any]
) -> Callable[..., Any]:
    """`run` as a function of the inputs of these names; arrays among the constants take the inputs' dtype."""

    def forward(*arguments: Any, **changes: Any) -> Any:
        inputs = dict(zip(names, arguments, strict=True))
        floats = [x.dtype for value in arguments for x in leaves(value) if x.dtype.kind in "fc"]
        real = np.empty(0, floats[0] if floats else np.float64).real.dtype
        options = {
            name: ops.to_device(value.astype(real)) if isinstance(value, np.ndarray) else value
            for name, value in constants.items()
        } | changes
        if options.get("rng") is not None:
            options["rng"] = np.random.default_rng(options["rng"])
        return run(**inputs | options)

    return forward


def copied(ops: Engine, value: Any) -> Any:
    """Return a copy of an array, or of each of several."""
    if isinstance(value, list):
        return [copied(ops, x) for x in value]
    return ops.to_device(ops.to_host(value).copy())


def no_backward(dout: Any, cache: Any) -> tuple:
    """The gradients of an operation that has none."""
    return ()


def model_case(
    kind: str = "all-attention",
    hard: bool = True,
    adaptive: bool = False,
    ops: Engine | None = None,
    frozen: bool = False,
    **options: Any,
) -> Case:
    """A whole model as one operation: its inputs are all parameters, its output is cross-entropy + lam · L0.

    Gated, with dropout everywhere, and with memory where the kind has one. The parameters are larger than a new
    model's, so that no gradient is small for want of signal.

    Args:
        kind: of model, see `ModelConfig`.
        hard: straight-through gates; soft ones otherwise.
        adaptive: adaptive softmax and embedding instead of the plain ones.
        ops: backend, by default the textbook.
        frozen: the inputs are the gates alone, and the weights have no gradients.
        options: further fields of `ModelConfig`.
    """
    ops = ops or Engine()
    recurrent, llama = kind not in ("transformer", "gpt2"), kind == "llama"
    config = ModelConfig(
        kind=kind,
        V=11,
        L=2,
        D=16 if llama else 12,
        H=4 if llama else 3,
        kv_heads=2 if llama else 0,
        N=5 if kind == "all-attention" else 0,
        F=0 if kind == "all-attention" else 7,
        T=4,
        M=3 if recurrent else 0,
        mask="same-length" if recurrent else "causal",
        cutoffs=(4, 7) if adaptive else (),
        div_value=2,
        dropout=0.1,
        dropout_attention=0.2,
        dropout_embedding=0.1,
        **options,
    )
    gate = GateConfig(**GATE, hard=hard)
    rng = np.random.default_rng(7)
    params = init_parameters(config, rng, np.float64)
    params = {name: 2 * x + 0.3 * rng.standard_normal(x.shape) for name, x in params.items()}
    # With the noise below: shut but learning, open and learning, clipped open; then clipped shut, and these two again.
    params["layers.0.log_alpha"] = np.array([-3.1, 1.9, -0.5])
    params["layers.1.log_alpha"] = np.array([-0.3, 0.4, 0.2])
    if llama:  # clipped shut: both heads of one group; one of another
        params["layers.0.log_alpha"] = np.array([-9.0, -9.0, 1.9, -0.5])
        params["layers.1.log_alpha"] = np.array([0.4, 0.2, -9.0, -0.3])
    ids, targets = rng.integers(0, config.V, (2, 2, config.T))
    # A memory that is not full yet: the last row of R is not read.
    memory = [rng.standard_normal((2, config.M - 1, config.D)) for _ in range(config.L)] if recurrent else None
    lam = 0.1
    inputs = {name: params[name] for name in (gates_of(params) if frozen else params)}

    def forward(*arrays: Any) -> tuple[Any, Any]:
        given = dict(zip(inputs, arrays, strict=True))
        fixed = {name: x.astype(arrays[0].dtype) for name, x in params.items() if name not in given}
        model = Transformer(config, {name: (fixed | given)[name] for name in params}, gate, ops)
        loss, _, cache = model.loss(ids, targets, memory, np.random.default_rng(1), frozen=frozen)
        l0_caches = {}
        for name in gates_of(params):
            l0, l0_caches[name] = textbook.l0_forward(model.params[name], **GATE)
            loss = loss + lam * l0
        return loss, (model, cache, l0_caches)

    def backward(dout: Any, cache: Any) -> tuple:
        model, cache, l0_caches = cache
        grads = model.backward(dout, cache)
        for name in gates_of(params):
            grads[name] = grads[name] + textbook.l0_backward(dout * lam, l0_caches[name])
        assert list(grads) == list(inputs)
        return tuple(grads.values())

    gates = f"{'straight-through' if hard else 'soft'} gates"
    changed = (f"{key} {value}" if isinstance(value, bool) else value for key, value in options.items())
    parts = [kind, *["adaptive softmax"] * adaptive, *changed, *["frozen weights"] * frozen, gates]
    return Case(f"model ({', '.join(map(str, parts))})", forward, backward, inputs)


def check_all(prefix: str | None = None, mode: str | None = None, ops: Engine | None = None) -> list[dict[str, Any]]:
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
            "gradients are checked by differences in float64, and this backend computes in float32; its tests compare "
            "it with the textbook, whose gradients are checked: pytest tests/kernels/cuda"
        )
    if mode is None:
        mode = "complex" if ops.takes_complex else "central"
    elif mode == "complex" and not ops.takes_complex:
        raise UsageError("this backend computes with real numbers only; mode must be central, got complex")
    models = [
        model_case(ops=ops),
        model_case(hard=False, ops=ops),
        model_case(hard=False, adaptive=True, ops=ops),
        model_case(hard=False, norm="rmsnorm", ops=ops),
        model_case(hard=False, persistent="stream", ops=ops),
        model_case("transformer-xl", hard=False, ops=ops),
        model_case("transformer", hard=False, ops=ops),
        model_case("gpt2", hard=False, ops=ops),
        model_case("llama", hard=False, ops=ops),
        model_case("llama", hard=False, tied=False, bias="layers", ops=ops),
        *(model_case(kind, hard=False, frozen=True, ops=ops) for kind in ("llama", "transformer")),
        model_case(hard=False, frozen=True, persistent="stream", ops=ops),
    ]
    cases = [
        case
        for case in [*operation_cases(ops), *models]
        if case.operation.startswith(prefix or "") and not (mode == "central" and "straight-through" in case.operation)
    ]
    worst = []
    bar = progress_bar(cases, desc="gradcheck", unit="case")
    for case in bar:
        bar.set_postfix_str(case.operation)
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
