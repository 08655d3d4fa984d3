"""Bugs planted in every operation and in the model's backward pass, one at a time, and found.

Most are systematic changes of the code (`mutants`), of every backward and of what it is made of; the others are wrong
operations, made of the right ones. A bug counts as found when a gradient does not pass, when the checker raises its
AssertionError, or when a forward pass is no longer that of the compiled kernels. What merely crashes is no bug.
"""

import inspect
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
from mutants import mutants, planted, remembered
from small import backend_with

from tinyprune import ops
from tinyprune.config import KINDS
from tinyprune.gradcheck import Case, check_gradients, model_case, operation_cases
from tinyprune.gradcheck.catalogue import leaves
from tinyprune.kernels.backend import get_backend
from tinyprune.model import blocks, gates, parameters, vocabulary
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer, accumulate
from tinyprune.ops.attention import by_key

CASES = {case.operation: case for case in operation_cases()}
OPERATIONS = list(dict.fromkeys(name.split(" (")[0] for name in CASES))


def functions_of(operation: str) -> list[FunctionType]:
    """The functions that an operation's file is made of; without checks, draws, and those that nothing here calls.

    Where the numba backend has no kernel, nothing but gradients tells a right forward pass from a wrong one: its
    backward alone.
    """
    module = import_module(f"tinyprune.ops.{operation}")
    own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    forward = f"{operation}_forward"
    compiled = forward in ops.OPERATIONS and getattr(get_backend("numba"), forward) is not getattr(ops, forward)
    left_out = "check_", "draw_", "keep_mask", "adaptive_log_probabilities", "units_gradient", "sum_heads", "zeros_like"
    left_out += ("cluster_bounds",)  # with wrong bounds shapes no longer fit
    return [f for f in own if f.__name__.endswith("_backward") or (compiled and not f.__name__.startswith(left_out))]


FUNCTIONS = {f.__name__: (operation, f) for operation in OPERATIONS for f in functions_of(operation)}

# Changes that change nothing: by function and kind how many, and why.
EQUIVALENT = tomllib.loads(Path(__file__).with_name("equivalent.toml").read_text("utf-8"))


@cache
def cases_of(operation: str) -> list[Case]:
    """The cases of an operation, the fullest first: what breaks it is no bug."""
    # These operations add to what is there.
    names = {operation, "projections"} if operation == "linear" else {operation}
    own = [case for name, case in CASES.items() if name.split(" (")[0] in names]
    return sorted(own, key=lambda case: -sum(x is not None for x in [*case.inputs.values(), *case.constants.values()]))


@cache
def compiled_outputs() -> dict[str, object]:
    """What the compiled kernels make of the catalogue's inputs."""
    return {case.operation: case.forward(*case.inputs.values())[0] for case in operation_cases(get_backend("numba"))}


def wrong_gradients(case: Case, directions: int | None = 1) -> bool:
    try:
        records = check_gradients(case.forward, case.backward, *case.inputs.values(), directions=directions)
    except AssertionError:
        return True
    return not all(record.passed for record in records)


def wrong_output(case: Case) -> bool:
    outs = case.forward(*case.inputs.values())[0], compiled_outputs()[case.operation]
    pairs = zip(*map(leaves, outs), strict=True)
    return not all(np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)


def outcomes(function: FunctionType, cases: list[Case], wrong: Callable[[Case], bool]) -> dict[str, list[str]]:
    """The mutants of a function, by what became of them."""
    results: dict[str, list[str]] = {"found": [], "not found": [], "crashed": []}
    for what, code in mutants(function):
        with planted(function, code), np.errstate(all="ignore"):
            try:
                result = "found" if any(wrong(case) for case in cases) else "not found"
            except Exception:
                result = "crashed"
        results[result].append(what)
    return results


def assert_none_escapes(name: str, results: dict[str, list[str]], in_model: bool = False) -> None:
    """All mutants of the function of this name are found, but for those that change nothing.

    Nor do those here: NumPy's arrays are in main memory already; in a model nobody reads a gradient again.
    """
    nothing = ("argument for result: ops.to_", *["argument changed in place"] * in_model)
    kinds = Counter((name, what.split(":")[0]) for what in results["not found"] if not what.startswith(nothing))
    expected = {(name, kind): count for kind, (count, _) in EQUIVALENT.get(name, {}).items()}
    assert kinds == expected, results["not found"]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore")
def test_every_mutant_of_an_operation_is_found(name):
    operation, function = FUNCTIONS[name]
    if name.endswith("_backward"):
        cases = [replace(case, forward=remembered(case.forward)) for case in cases_of(operation)]
        results = outcomes(function, cases, wrong_gradients)
    else:
        compiled_outputs()
        results = outcomes(function, cases_of(operation), lambda case: wrong_gradients(case) or wrong_output(case))
    assert_none_escapes(name, results)
    assert results["found"] and not any(wrong_gradients(case) for case in cases_of(operation))


BLOCKS = "attention_block second_block networks relu gelu swiglu heads norm output"
MODEL_FUNCTIONS = [getattr(blocks, f"{name}_backward") for name in BLOCKS.split()]
MODEL_FUNCTIONS += [Transformer.backward_with_gates, Transformer.put_layer, accumulate]
MODEL_FUNCTIONS += [vocabulary.embed_backward, vocabulary.predict_backward]
MODEL_FUNCTIONS += [gates.gates_backward, gates.put_active, Parts.split]
MODEL_FUNCTIONS += [parameters.put_heads, parameters.put_blocks]


@cache
def model_cases() -> list[Case]:
    """Models of every kind, with what only some of them have."""
    cases = [model_case(kind, hard=kind != "transformer", adaptive=kind == "transformer-xl") for kind in KINDS]
    cases += [model_case("transformer", norm="rmsnorm"), model_case("llama", tied=False, bias="layers")]
    cases += [model_case("llama", frozen=True), model_case("transformer-xl", U=2), model_case("gpt2", U=2)]
    cases += [model_case(hard=False, persistent="stream"), model_case("llama", head_norms=True)]
    cases = [replace(case, forward=remembered(case.forward)) for case in cases]
    # what is remembered must be computed before the first bug is planted: `Parts.split` is part of forward, too
    assert not any(wrong_gradients(case) for case in cases)
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("function", MODEL_FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_every_mutant_of_the_models_backward_is_found(function):
    assert_none_escapes(function.__name__, outcomes(function, model_cases(), wrong_gradients), in_model=True)


# Bugs that no small change of the code makes: wrong operations, made of the right ones.


def changed_gradients(name: str, change: Callable) -> tuple[str, Callable]:
    """The name of a case, and its backward with `change` made to the tuple of its gradients."""
    return name, lambda dout, kept: change(CASES[name].backward(dout, kept))


def part(**changes: Callable) -> Callable:
    """A change of some of attention's gradients, by name."""
    names = ("q", "k", "v", "r", "u", "w", "pk", "pv", "gate")

    def change(gradients):
        by_name = dict(zip(names, gradients, strict=True))
        return tuple((by_name | {name: new(by_name) for name, new in changes.items()}).values())

    return change


def without_shift(dout, kept):
    with planted(by_key, (lambda P: P[..., :-1]).__code__):
        return ops.attention_backward(dout, kept)


def after_dropout(dout, kept):
    return ops.attention_backward(dout, kept._replace(a=kept.a * kept.keep / (1 - kept.dropout)))


def last_place_only(dout, kept):
    """A repeated word's gradients overwrite each other."""
    ids = CASES["embedding"].inputs["ids"].reshape(-1)
    last = np.array([word not in ids[i + 1 :] for i, word in enumerate(ids)]).reshape(dout.shape[:-1])
    return ops.embedding_backward(dout * last[..., None], kept)


def last_position_only(dout, kept):
    return ops.context_backward(np.where(np.arange(dout.shape[1])[:, None] == dout.shape[1] - 1, dout, 0), kept)


def memory_without_keys(douts, kept):
    dq, dk, *others = douts
    dk = dk * (np.arange(dk.shape[1]) >= dk.shape[1] - dq.shape[1])[:, None]
    return ops.projections_backward([dq, dk, *others], kept)


def before_relu(dout, kept):
    x, W1, b1, *_ = CASES["feedforward"].inputs.values()
    dx, dW1, db1, _, db2, dgate = ops.feedforward_backward(dout, kept)
    return dx, dW1, db1, np.einsum("btf,btd->fd", x @ W1 + b1, dout), db2, dgate


def gate_for_s(gradient):
    """g (1 − g) in the place of s (1 − s)."""
    gate, (s, *_) = CASES[TRAINING].forward(*CASES[TRAINING].inputs.values())
    return gradient * gate * (1 - gate) / (s * (1 - s))


FULL, TRAINING = "attention (All-attention)", "hard_concrete (soft, training)"
EVALUATION = "hard_concrete (soft, evaluation)"
OPERATION_BUGS = {
    "attention: c left out of dgate": changed_gradients(FULL, part(gate=lambda d: d["gate"] / 1.5)),
    "attention: the gate in dgate": changed_gradients(FULL, part(gate=lambda d: d["gate"] * 0.7)),
    "attention: dw holds the content path": changed_gradients(FULL, part(w=lambda d: d["u"] + d["w"])),
    "attention: dpk scaled as context keys are": changed_gradients(FULL, part(pk=lambda d: d["pk"] / 5**0.5)),
    "attention: relative shift forgotten": (FULL, without_shift),
    "attention: softmax of the dropped weights": (FULL, after_dropout),
    "embedding: repeated words overwrite each other": ("embedding", last_place_only),
    "residual: dropout on both paths": changed_gradients("residual", lambda d: (d[1], d[1])),
    "context: the last position only": ("context", last_position_only),
    "projections: keys of the memory forgotten": ("projections", memory_without_keys),
    "feedforward: dW2 from before the ReLU": ("feedforward", before_relu),
    "feedforward: biases swapped": changed_gradients("feedforward", lambda d: (*d[:2], d[4], d[3], d[2])),
    "adaptive_embedding: rows of other places": (
        "adaptive_embedding",
        lambda dout, kept: ops.adaptive_embedding_backward(np.roll(dout, 1, axis=1), kept),
    ),
    "adaptive_embedding: projection forgotten": changed_gradients(
        "adaptive_embedding", lambda d: ([d[0][0], d[0][1] @ d[1][0], *d[0][2:]], d[1])
    ),
    "hard_concrete: temperature in evaluation too": changed_gradients(EVALUATION, lambda d: d / 0.333),
    "hard_concrete: the gate in the place of s": changed_gradients(TRAINING, gate_for_s),
    "l0: a mean over heads": changed_gradients("l0", lambda d: d / d.size),
}


@pytest.mark.parametrize("bug", OPERATION_BUGS)
def test_a_wrong_operation_is_found(bug):
    name, backward = OPERATION_BUGS[bug]
    assert wrong_gradients(replace(CASES[name], backward=backward), directions=None)


def later_rows(dn, kept):
    """The rows of the memory give LayerNorm's gains no gradient."""
    return ops.layernorm_backward(np.where(np.arange(dn.shape[1])[:, None] < dn.shape[1] - 4, 0, dn), kept)


MODEL_BUGS = {
    "the memory's gradient given to the segment": {"context_backward": lambda d, kept: d[:, : kept[0]]},
    "keys of the memory forgotten": {"projections_backward": memory_without_keys},
    "memory forgotten in LayerNorm's gains": {"layernorm_backward": later_rows},
    "dropout forgotten after a block": {"residual_backward": lambda dout, kept: (dout, dout)},
    "heads put at the front when others are left out": {
        "put_slices": lambda part, index, *others, **more: ops.put_slices(part, range(len(index)), *others, **more)
    },
    "heads put in reverse order": {
        "put_slices": lambda part, index, *others, **more: ops.put_slices(part, index[::-1], *others, **more)
    },
}


@pytest.mark.parametrize("bug", MODEL_BUGS)
def test_a_wrong_operation_in_a_model_is_found(bug):
    assert wrong_gradients(model_case("all-attention", ops=backend_with(**MODEL_BUGS[bug])))


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_no_false_alarm(mode):
    for case in [*CASES.values(), *model_cases()]:
        if mode == "complex" or "straight-through" not in case.operation:
            records = check_gradients(case.forward, case.backward, *case.inputs.values(), mode=mode, directions=1)
            assert all(record.passed for record in records), case.operation
