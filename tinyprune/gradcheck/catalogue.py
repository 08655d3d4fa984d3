"""What `tinyprune gradcheck` checks: a `Case` for every operation, with small inputs.

The tests use the same cases: they measure gradients, compare every backend with the textbook in other sizes, and plant
bugs. Sizes are distinct, so that no transpose goes unnoticed, and T ≥ 3, so that no softmax is trivially 1. Gates lie
below, inside and above the interval where they are not clipped, away from its ends, where they have no derivative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tinyprune import ops as textbook
from tinyprune.gradcheck.checker import as_tuple, leaves
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.cross_entropy import log_softmax
from tinyprune.ops.engine import Engine

GATE: dict[str, Any] = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
# With the noise below: clipped to 0, inside the interval on both sides of one half, clipped to 1.
LOG_ALPHA = np.array([-1.5, -0.9, -0.1, 0.2, 0.5, 1.9])
NOISE = np.array([0.2, 0.6, 0.45, 0.5, 0.4, 0.7])
SEED = 3252  # of dropout
Inputs = dict[str, Any]


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


class Dimensions(NamedTuple):
    """Dimensions of the inputs; `lead` are the leading axes of operations that take any, by default (B, T)."""

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


SIZES = Dimensions()


class Maker:
    """Makes the cases of an engine (by default the textbook), with random inputs of these sizes."""

    def __init__(self, ops: Engine | None, sizes: Dimensions) -> None:
        self.ops = ops or Engine()
        self.sizes = sizes
        self.lead = sizes[:2] if sizes.lead is None else sizes.lead
        self.rng = np.random.default_rng(2125)

    def normal(self, *shape: int, size: float = 1.0, wanted: bool = True) -> Any:
        """Draw normal numbers, `size` times as large; None unless `wanted`, for an argument that is left out."""
        return size * self.rng.standard_normal(shape) if wanted else None

    def integers(self, end: int, shape: tuple[int, ...]) -> np.ndarray:
        """Draw integers below `end`."""
        return np.asarray(self.rng.integers(0, end, shape))

    def function(self, name: str) -> Callable[..., Any]:
        """Return an operation as a method below calls it, of the engine or, as for gates, of the textbook."""
        return next(getattr(of, name) for of in (self, self.ops, textbook) if hasattr(of, name))

    def pair(self, operation: str, inputs: Inputs, variant: str = "", **constants: Any) -> Case:
        """Return a case of an operation with a gradient; arguments that have none are `constants`."""
        run_backward = self.function(f"{operation}_backward")
        run_forward = self.function(f"{operation}_forward")
        forward = with_constants(self.ops, run_forward, list(inputs), constants)

        def backward(dout: Any, cache: Any) -> Any:
            gradients = run_backward(*as_tuple(dout), cache)
            if not constants.get("frozen"):
                return gradients
            # Frozen parameters are among the constants, and their gradients are None.
            return tuple(x for x in gradients if x is not None)

        if variant:
            operation = f"{operation} ({variant})"
        return Case(operation, forward, backward, inputs, constants)

    def frozen(self, case: Case, variant: str = "frozen") -> Case:
        """Return the case with frozen parameters: they have no gradients, and so are constants."""
        parameters = case.inputs.copy()
        trained = [name for name in ("x", "n", "h", "gate") if parameters.get(name) is not None]
        inputs = {name: parameters.pop(name) for name in trained}
        constants = parameters | case.constants | {"frozen": True}
        return self.pair(case.operation.split(" (")[0], inputs, variant, **constants)

    def single(self, operation: str, inputs: Inputs, written: Sequence[str] = (), **constants: Any) -> Case:
        """Return a case of an operation without a gradient, whose name may have a variant in brackets.

        Inputs that it writes to (`written`) are copied first, and the copies are part of the output.
        """
        run = self.function(operation.split(" (")[0])

        def run_on_copies(**arguments: Any) -> tuple[Any, None]:
            copies = {name: copied(self.ops, arguments[name]) for name in written}
            out = run(**arguments | copies)
            if written:
                out = (*leaves(out), *copies.values())
            return out, None

        forward = with_constants(self.ops, run_on_copies, list(inputs), constants)
        return Case(operation, forward, no_backward, inputs, constants)

    def projections_forward(self, n: Any, R: Any, T: int, frozen: bool = False, **parameters: Any) -> tuple:
        """Call `projections_forward` with the parameters as lists."""
        weights = [parameters[f"W{x}"] for x in "qkvr"]
        biases = [parameters[f"b{x}"] for x in "qkv"]
        outs, cache = self.ops.projections_forward(n, R, weights, biases, T, frozen=frozen)
        return tuple(outs), cache

    def projections_backward(self, *douts_and_cache: Any) -> tuple:
        """Call `projections_backward` with the gradients as a list."""
        *douts, cache = douts_and_cache
        return self.ops.projections_backward(douts, cache)

    def clipping(self, **arguments: Any) -> list[float]:
        """Call `clipping`, whose numbers a GPU returns as arrays."""
        return [float(x) for x in self.ops.clipping(**arguments)]

    def clusters(self) -> tuple[int, Inputs, Inputs]:
        """Draw a vocabulary of three clusters: how many words, tables and projections, the softmax's other inputs."""
        D, V = self.sizes.D, self.sizes.V
        heights, widths = (V // 2, V // 3, max(V - 5, 1)), (D, max(D // 2, 1), max(D // 3, 1))
        # logits of about 1, whatever D is: large ones would amplify the rounding of float32
        shapes = list(zip(heights, widths, strict=True))
        tables = [self.normal(height, width, size=width**-0.5) for height, width in shapes]
        tied = {"tables": tables, "projections": [self.normal(width, D) for width in widths[1:]]}
        head = {"cluster_weight": self.normal(2, D), "cluster_bias": self.normal(2)}
        return sum(heights), tied, head | {"biases": [self.normal(height) for height in heights]}

    def gate(self, wanted: bool = True) -> Any:
        """Return gates of H heads: inside, closed, open; None unless `wanted`."""
        return np.resize([0.7, 0.0, 1.0], self.sizes.H) if wanted else None


def weight_cases(make: Maker) -> list[Case]:
    """Linear layers, projections, and the blocks after attention; with all parameters, and with frozen ones."""
    B, T, M, H, Dh, N, D, F, *_ = make.sizes
    normal, lead = make.normal, make.lead

    def linear(variant: str = "", biased: bool = True) -> Case:
        inputs = {"x": normal(*lead, D), "W": normal(D, F), "b": normal(F, wanted=biased)}
        return make.pair("linear", inputs, variant)

    def projections(variant: str = "", K: int = H, biased: str = "", relative: bool = False) -> Case:
        widths = {"q": H * Dh, "k": K * Dh, "v": K * Dh, "r": H * Dh}
        inputs = {"n": normal(B, M + T, D), "R": normal(M + T, D, wanted=relative)}
        for x, width in widths.items():
            inputs[f"W{x}"] = normal(D, width, wanted=x != "r" or relative)
        for x in "qkv":
            inputs[f"b{x}"] = normal(widths[x], wanted=x in biased)
        return make.pair("projections", inputs, variant, T=T)

    def feedforward(variant: str = "", F: int = F, **options: Any) -> Case:
        inputs = {"x": normal(*lead, D), "W1": normal(D, F), "b1": normal(F)}
        inputs |= {"W2": normal(F, D), "b2": normal(D), "gate": make.gate("scale" in options)}
        return make.pair("feedforward", inputs, variant, **options)

    def blocks(variant: str = "", biased: bool = True, gated: bool = True, **options: Any) -> Case:
        inputs = {"h": normal(*lead, H * N), "W": normal(H * N, D), "b": normal(D, wanted=biased)}
        return make.pair("blocks", inputs | {"gate": make.gate(gated)}, variant, **options)

    def networks(variant: str = "", gated: bool = True, **options: Any) -> Case:
        inputs = {"x": normal(*lead, D), "pk": normal(H, N, D), "pb": normal(H, N)}
        inputs |= {"pv": normal(H, N, D), "bo": normal(D), "gate": make.gate(gated)}
        return make.pair("head_networks", inputs, variant, **options)

    grouped = (H + 1) // 2
    return [
        linear(),
        linear("no bias", biased=False),
        projections(),
        projections("shared keys and values, biases", grouped, "qkv"),
        projections("no bias of keys, position keys", biased="qv", relative=True),
        feedforward(),
        feedforward("gated units", H * N, scale=1.5),
        blocks(scale=1.5),
        blocks("no bias, no gates", biased=False, gated=False),
        networks(scale=1.5),
        networks("no gates", gated=False),
        make.frozen(linear()),
        make.frozen(projections(K=grouped, biased="qkv")),
        make.frozen(feedforward()),
        make.frozen(feedforward(F=H * N, scale=1.5), "frozen, gated units"),
        make.frozen(blocks(scale=1.5)),
        make.frozen(blocks(gated=False), "frozen, no gates"),
        make.frozen(networks(scale=1.5)),
        make.frozen(networks(gated=False, scale=1.5), "frozen, no gates"),
    ]


def attention_cases(make: Maker) -> list[Case]:
    """Attention with all that is optional, by itself and together; and what the layer would lose with a head."""
    B, T, M, H, Dh, N, D, *_ = make.sizes
    normal, S = make.normal, M + T

    def attention(variant: str, *parts: Inputs, **options: Any) -> Case:
        names = ("q", "k", "v", "r", "u", "w", "pk", "pv", "gate")
        inputs = dict.fromkeys(names) | {name: x for part in parts for name, x in part.items()}
        return make.pair("attention", inputs, variant, rng=SEED, **options)

    context = {"q": normal(B, T, H, Dh), "k": normal(B, S, H, Dh), "v": normal(B, S, H, Dh)}
    plain = context | {name: context[name][:, M:] for name in ("k", "v")}
    relative = {"r": normal(S, H, Dh), "u": normal(H, Dh), "w": normal(H, Dh)}
    persistent = {"pk": normal(H, N, Dh, size=0.5), "pv": normal(H, N, Dh)} if N else {}
    gate = {"gate": make.gate()}
    everything = context | relative | persistent | gate
    return [
        attention("plain causal", plain),
        attention("Transformer-XL", context, relative, dropout=0.2),
        attention("same length", context, relative, gate, span=M),
        attention("persistent only", context, persistent, gate, scale=1.5),
        attention("All-attention", everything, dropout=0.2, span=M, scale=1.5),
    ]


def row_cases(make: Maker) -> list[Case]:
    """Operations on each row, entry or head: norms, activations, dropout, residual connections, positions."""
    B, T, M, H, Dh, _, D, F, *_ = make.sizes
    normal, pair, lead, S = make.normal, make.pair, make.lead, M + make.sizes.T
    shared = np.resize([0, 0, 1, 2, 2], H).tolist()
    return [
        # eps is large: a small one would not show, and amplifies rounding in rows that are nearly constant
        pair("layernorm", {"x": normal(*lead, D), "scale": normal(D), "bias": normal(D)}, eps=0.1),
        pair("rmsnorm", {"x": normal(*lead, D), "scale": normal(D)}, eps=0.1),
        pair("gelu", {"a": normal(*lead, F)}),
        pair("swiglu", {"a": normal(*lead, F), "b": normal(*lead, F)}),
        pair("dropout", {"x": normal(*lead, D)}, rate=0.3, rng=SEED),
        pair("dropout", {"x": normal(*lead, D)}, "evaluation", rate=0.3, rng=None),
        pair("residual", {"x": normal(*lead, D), "y": normal(*lead, D)}, dropout=0.3, rng=SEED),
        pair("context", {"x": normal(B, T, D)}, m=normal(B, M, D)),
        pair("context", {"x": normal(B, T, D)}, "no memory", m=None),
        pair("positions", {"x": normal(B, T, D), "P": normal(S, D)}),
        pair("positions", {"x": normal(B, T, D), "P": None}, "none"),
        pair("rotary", {"x": normal(B, T, H, 2 * Dh)}, base=10.0),
        pair("rotary", {"x": normal(B, T, H, 2 * Dh)}, "later positions", first=7),
        pair("rotary", {"x": normal(B, T, H, 2 * Dh)}, "scaled", base=(8.0, 1.7, 4.0, 64.0, 10.0)),
        pair("rotary", {"x": normal(B, T, H, 2 * Dh)}, "none", base=None),
        pair("repeat_heads", {"x": normal(B, S, max(shared, default=-1) + 1, Dh)}, index=shared),
        pair("repeat_heads", {"x": normal(B, S, H, Dh)}, "each its own", index=None),
    ]


def vocabulary_cases(make: Maker) -> list[Case]:
    """Both ends of the model: plain and adaptive embedding, and the losses."""
    D, V = make.sizes.D, make.sizes.V
    normal, integers, pair, lead = make.normal, make.integers, make.pair, make.lead
    words, tied, head = make.clusters()
    frequent = words - len(tied["tables"][-1])  # words of all clusters but the last

    def embedding(variant: str = "", rng: int | None = SEED, **options: Any) -> Case:
        inputs = {"ids": integers(V, lead), "E": normal(V, D)}
        return pair("embedding", inputs, variant, dropout=0.3, rng=rng, **options)

    def adaptive(end: int, variant: str = "", **options: Any) -> list[Case]:
        read = {"ids": integers(end, lead)} | tied
        predicted = {"x": normal(*lead, D), "targets": integers(end, lead)} | tied | head
        embedded = pair("adaptive_embedding", read, variant, **options)
        return [embedded, pair("adaptive_softmax", predicted, variant)]

    def student() -> Inputs:
        return {"logits": normal(*lead, V), "targets": integers(V, lead)}

    return [
        embedding(),
        embedding("evaluation", rng=None),
        embedding("another scale", scale=0.6),
        *adaptive(words, dropout=0.3, rng=SEED),
        *adaptive(frequent, "last cluster absent", rng=None),
        pair("cross_entropy", student()),
        pair("distillation", student(), teacher=log_softmax(normal(*lead, V)), share=0.3),
    ]


def gate_cases(make: Maker) -> list[Case]:
    """Hard-Concrete gates, in training and evaluation, soft and straight-through; and their L0 loss."""
    pair, inputs = make.pair, {"log_alpha": LOG_ALPHA}
    # without noise and temperature the clip begins only beyond ±2.4
    wide = {"log_alpha": 3 * LOG_ALPHA}
    cases = [pair("l0", {"log_alpha": LOG_ALPHA.reshape(2, 3)}, **GATE)]
    cases.append(pair("l0", inputs, "of different sizes", weights=np.linspace(0.5, 2, 6), **GATE))
    for kind, hard in (("soft", False), ("straight-through", True)):
        options = GATE | {"hard": hard}
        cases.append(pair("hard_concrete", inputs, f"{kind}, training", u=NOISE, **options))
        cases.append(pair("hard_concrete", wide, f"{kind}, evaluation", u=None, **options))
    return cases


def primitive_cases(make: Maker) -> list[Case]:
    """Return cases of the operations that compositions call, and that have no backward function."""
    B, T, M, H, Dh, N, D, F, V, _ = make.sizes
    normal, single, lead = make.normal, make.single, make.lead
    product = {"a": normal(*lead, D), "b": normal(D, F)}
    units = {"products": normal(*lead, H * N), "r": np.maximum(normal(*lead, H * N), 0)}
    order, several, heads = np.arange(B)[::-1], make.integers(V, (T,)), list(range(H))[::-2]
    return [
        single("matmul", product),
        single("matmul (bias, ReLU)", product | {"bias": normal(F)}, relu=True),
        single("matmul (where)", product | {"where": np.maximum(normal(*lead, F), 0)}),
        single("matmul (onto)", product | {"onto": normal(*lead, F)}, ("onto",)),
        single("weight_gradient", {"x": normal(*lead, D), "dout": normal(*lead, F)}),
        single("column_sums", {"x": normal(*lead, D)}),
        single("take_rows", {"x": normal(V, D), "index": several}),
        single("add_rows", {"x": normal(B + 1, D), "index": order, "rows": normal(B, D)}, ("x",)),
        single("set_rows", {"x": normal(B, D), "rows": normal(B, D)}, ("x",)),
        single("sum_rows", {"rows": normal(T, D), "index": several}, n=V),
        single("multiply_rows", {"x": normal(H, N, D), "factors": normal(H)}),
        single("row_dots", {"x": normal(H, N, D), "y": normal(H, N, D)}, factor=1.5),
        single("concatenate", {"arrays": [normal(B, M, D), normal(B, T, D)]}, axis=1),
        single("concatenate (rows)", {"arrays": [normal(T, D), normal(M, D), normal(T, D)]}),
        single("take_slices", {"x": normal(B, H * Dh, D)}, index=heads, axis=1, width=Dh),
        single("put_slices", {"part": normal(B, len(heads) * Dh, D)}, index=heads, axis=1, n=H, width=Dh),
        single("units_gradient", units | {"weights": make.gate()}, scale=1.5),
        single("units_gradient (no ReLU)", units | {"weights": make.gate()}, scale=1.5, relu=False),
        single("sum_heads", {"x": normal(B, T, H, Dh)}, index=np.resize([0, 0, 1, 3], H).tolist(), K=4),
        single("rotate", {"x": normal(B, T, H, 2 * Dh)}, base=10.0, back=True),
        single("add", {"a": normal(*lead, D), "b": normal(*lead, D)}),
    ]


def update_cases(make: Maker) -> list[Case]:
    """Norms of gradients, updates of parameters, and operations for reports and for scores of heads."""
    B, T, _, H, Dh, _, D, F, V, _ = make.sizes
    normal, single, lead = make.normal, make.single, make.lead
    _, tied, head = make.clusters()
    parameter = {"param": normal(*lead, D), "grad": normal(*lead, D)}
    moments = {"m": normal(*lead, D), "v": np.abs(normal(*lead, D))}
    several = {f"{name}s": [x, x[..., :1].copy()] for name, x in (parameter | moments).items()}
    rule = {"lr": 0.1, "constants": AdamConstants(0.8, 0.95, eps=1e-3, step=3, grad_scale=0.7)}
    each, several_at_once = {"decay": 0.3}, {"multipliers": [1.0, 2.0], "decays": [0.3, 0.0]}
    changed = "param", "m", "v"
    blocks = {name: normal(64, F) for name in ("param", "grad")}
    of_scales, of_both = ({"m": normal(n, 2, F), "v": np.abs(normal(n, 2, F))} for n in (1, 2))
    return [
        single("squared_norm", {"x": normal(*lead, D)}),
        single("squared_norms", {"arrays": [normal(*lead, D), normal(F)]}),
        single("clipping", {"grads": [normal(*lead, D), normal(F)]}, losses=[0.7], max_norm=0.5),
        single("lamb_update", parameter | moments, changed, **each, **rule),
        single("scales_update", blocks | of_both, changed, **each, **rule),
        single("scales_update (no offsets)", blocks | of_scales, changed, **each, **rule),
        single("adamw_updates", several, ("params", "ms", "vs"), **several_at_once, **rule),
        single("log_softmax", {"logits": normal(*lead, V)}),
        single("adaptive_log_probabilities", {"x": normal(*lead, D), **tied, **head}),
        single("head_difference", {"o": normal(B, T, H, Dh), "Wo": normal(H * Dh, D)}, scale=1.5),
        single("sigmoid", {"x": LOG_ALPHA}),
        single("p_open", {"log_alpha": LOG_ALPHA}, **GATE),
    ]


WITH_GRADIENT = weight_cases, attention_cases, row_cases, vocabulary_cases, gate_cases
WITHOUT_GRADIENT = primitive_cases, update_cases


def operation_cases(ops: Engine | None = None, sizes: Dimensions = SIZES) -> list[Case]:
    """Return a case for every operation of `ops` (by default the textbook) with a gradient, for some several."""
    return [case for group in WITH_GRADIENT for case in group(Maker(ops, sizes))]


def other_cases(ops: Engine | None = None, sizes: Dimensions = SIZES) -> list[Case]:
    """Return cases of the operations without a gradient, for comparing backends."""
    return [case for group in WITHOUT_GRADIENT for case in group(Maker(ops, sizes))]


def with_constants(ops: Engine, run: Callable, names: list[str], constants: Inputs) -> Callable:
    """Return `run` as a function of the inputs of these names alone; array constants are cast to the inputs' dtype."""

    def forward(*arguments: Any, **changes: Any) -> Any:
        inputs = dict(zip(names, arguments, strict=True))
        dtypes = [x.dtype for value in arguments for x in leaves(value) if x.dtype.kind in "fc"]
        # inputs are complex in a complex step
        real = np.empty(0, [*dtypes, np.float64][0]).real.dtype
        options = constants.copy()
        for name, value in constants.items():
            if isinstance(value, np.ndarray):
                options[name] = ops.to_device(value.astype(real))
        options |= changes
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
    """Return no gradients."""
    return ()
