"""Every operation against the textbook in float64, at shapes that are ragged for its kernels.

Less than a block and more than one, one entry more than a multiple, one entry, none.
"""

import inspect

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.pruning.l0 import THREADS as GATES
from tinyprune.kernels.cuda.vocabulary.cross_entropy import FOUR

from ..compare import assert_same_bits, mapped
from .compare import assert_close, assert_equal_to_textbook, cuda, in_float64, is_float32, normal, on_device, slow

GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
D, DIV, SIZES = 12, 2, (4, 3, 5)  # of the adaptive operations: features, and words of each cluster


def words(shape, V):
    """Word 1 in about half of the places."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < 0.5, 1, rng.integers(0, V, shape))


def clusters(sizes=SIZES):
    """Tables and projections of 12, 6 and 3 numbers a word."""
    widths = [D // DIV**c for c in range(len(sizes))]
    return normal(*zip(sizes, widths, strict=True)), normal(*((width, D) for width in widths[1:]), seed=7)


# Each makes of a case the arguments of forward, the gradients of what it returns, and options given by name.


def layernorm(*shape):
    x, dout, scale, bias = normal(shape, shape, shape[-1:], shape[-1:])
    return (x + 2, scale, bias), (dout,), {}


def linear(first, K, O, bias=True):
    x, W, b, dout = normal((*first, K), (K, O), (O,), (*first, O))
    return (x, W, b if bias else None), (dout,), {}


def feedforward(first, D, F):
    """Small whole numbers before the kink, whose sums are exact: rounding decides the side of none."""
    x, W1, b1, W2, b2, dout = normal((*first, D), (D, F), (F,), (F, D), (D,), (*first, D))
    return (*(np.rint(2 * a) for a in (x, W1, b1)), W2, b2), (dout,), {}


def projections(B, S, T, D, O):
    *arrays, dq, dk, dv = normal((B, S, D), (D, O), (D, O), (D, O), (B, T, O), (B, S, O), (B, S, O))
    return (*arrays, T), (dq, dk, dv), {}


def positions(B, T, D, rows):
    x, P, dout = normal((B, T, D), (rows, D), (B, T, D))
    return (x, P), (dout,), {}


def rotary(*shape, base=10.0, first=3):
    x, dout = normal(shape, shape)
    return (x, base, first), (dout,), {}


def context(B, M, T, D):
    m, x, dout = normal((B, M, D), (B, T, D), (B, M + T, D))
    return (m, x), (dout,), {}


def dropout(shape, rate):
    x, dout = normal(shape, shape)
    return (x, rate), (dout,), {"seed": 5}


def residual(shape, dropout):
    x, y, dout = normal(shape, shape, shape)
    return (x, y), (dout,), {"dropout": dropout, "seed": 5}


def gelu(*shape):
    a, dout = normal(shape, shape)
    return (3 * a,), (dout,), {}


def swiglu(*shape):
    a, b, dout = normal(shape, shape, shape)
    return (3 * a, b), (dout,), {}


def repeat_heads(B, S, K, Dh, index):
    x, dout = normal((B, S, K, Dh), (B, S, len(index), Dh))
    return (x, index), (dout,), {}


def embedding(shape, V, D, dropout):
    E, dout = normal((V, D), (*shape, D))
    return (words(shape, V), E), (dout,), {"dropout": dropout, "seed": 7}


def adaptive_embedding(shape, sizes, dropout):
    ids = np.random.default_rng(3).integers(0, sum(sizes), shape)
    return (ids, *clusters(sizes)), tuple(normal((*shape, D), seed=8)), {"dropout": dropout, "seed": 1}


def adaptive_softmax(targets):
    """Some targets have no row in one tail, or in any."""
    targets = np.array(targets)
    x, weight, bias = normal((*targets.shape, D), (len(SIZES) - 1, D), (len(SIZES) - 1,), seed=9)
    return (x, targets, *clusters(), weight, bias, normal(*((V,) for V in SIZES), seed=10)), (0.7,), {}


def cross_entropy(shape, dout):
    logits, targets = 5 * normal(shape)[0], np.random.default_rng(3).integers(0, shape[-1], shape[:-1])
    return (logits, targets), (dout,), {}


def hard_concrete(shape, hard, noisy):
    log_alpha, dout = normal(shape, shape)
    u = np.asarray(np.random.default_rng(1).uniform(0.1, 0.9, shape), np.float32) if noisy else None
    return (np.asarray(3 * log_alpha), u), (dout,), {**GATE, "hard": hard}


def l0(*shape):
    log_alpha = np.asarray(3 * normal(shape)[0])
    log_alpha.flat[1:3] = -1e4, 1e4
    return (log_alpha,), (0.3,), GATE


def layerwise_error(scale, B, T, H, Dh, D):
    return (*normal((H,), (B, T, H, Dh), (H * Dh, D), (D,)), scale), (0.7,), {}


def top_k(hard, noisy):
    log_alpha, noise, dout = normal((9,), (9,), (9,))
    return (log_alpha, noise if noisy else None), (dout,), {"k": 4, "tau": 0.7, "hard": hard}


ROWS = [(2, 3, 130), (70, 33), (3, 7), (1, 1), (0, 5), (2, 0, 4), (5,)]
CASES = {
    layernorm: ROWS,
    linear: [
        ((70,), 33, 9), ((2, 3), 5, 7, False), ((), 6, 5), ((1,), 4, 4), ((2, 0), 3, 2), ((9,), 0, 4), ((9,), 4, 0),
        ((), 0, 3),
    ],
    feedforward: [((70,), 5, 16), ((2, 5), 6, 9), ((3,), 7, 33), ((), 4, 5), ((0,), 3, 4), ((9,), 3, 0)],
    projections: [
        (3, 5, 3, 7, 9), (2, 7, 5, 12, 8), (2, 4, 4, 5, 3), (1, 1, 1, 1, 1), (2, 5, 0, 3, 4), (2, 5, 3, 3, 0),
        (0, 2, 1, 3, 4),
    ],
    positions: [(7, 5, 67, 6), (2, 3, 5, 3), (1, 1, 1, 4), (0, 2, 3, 2), (2, 0, 3, 2), (2, 1, 0, 2)],
    rotary: [(2, 5, 3, 66), (3, 2, 1, 2), (1, 1, 1, 2), (0, 2, 3, 4), (2, 3, 0, 4), (2, 0, 3, 4)],
    context: [(3, 1, 7, 70), (2, 3, 4, 5), (1, 0, 2, 3), (0, 2, 3, 4), (2, 3, 0, 4)],
    dropout: [((2, 3, 130), 0.1), ((3,), 0.0), ((300,), 0.99), ((1,), 0.5), ((0, 4), 0.5), ((), 0.5)],
    residual: [((2, 3, 130), 0.4), ((2, 3, 130), 0.0), ((1,), 0.4), ((0, 4), 0.4)],
    gelu: [(2, 3, 130), (1, 1), (0, 5), (5,)],
    swiglu: [(2, 3, 130), (1, 1), (0, 5), (5,)],
    repeat_heads: [
        (2, 5, 3, 33, [0, 0, 1, 2, 2]), (3, 2, 4, 2, [3, 1, 3]), (1, 1, 1, 1, [0]), (0, 2, 1, 4, [0, 0]),
        (2, 3, 0, 4, []), (2, 3, 2, 4, []),
    ],
    embedding: [((2, 75), 97, 3, 0.3), ((3,), 2, 130, 0.0), ((1, 1), 2, 1, 0.0), ((2, 0), 1, 3, 0.3)],
    adaptive_embedding: [
        ((3, 4), SIZES, 0.4), ((3, 4), (12,), 0.4), ((7,), SIZES, 0.0), ((), SIZES, 0.0), ((0, 2), SIZES, 0.0),
    ],
    adaptive_softmax: [([[0, 11, 5, 4], [3, 3, 10, 7]],), ([[0, 3], [2, 1]],), ([4, 6, 5],), (8,)],
    cross_entropy: [
        ((2, 2 * FOUR + 129), 1.0), ((3, FOUR - 1), -0.3), ((1, FOUR), 1.0), ((2, 128), 1.0), ((2, 3, 50), -0.3),
        ((1, 1), 1.0),
    ],
    hard_concrete: [
        ((GATES + 1,), False, True), ((2, 3), True, True), ((6,), False, False), ((), True, False), ((0,), False, True),
    ],
    l0: [(2 * GATES + 1,), (2, 3), (), (0,)],
    layerwise_error: [
        (1.5, 2, 5, 9, 2, 70), (1.0, 1, 2, 1, 67, 3), (1.5, 2, 3, 3, 5, 7), (1.0, 1, 1, 1, 1, 1), (1.0, 2, 3, 0, 5, 4),
        (1.0, 0, 3, 2, 2, 3),
    ],
    top_k: [(True, True), (False, False)],
}  # fmt: skip
LARGE = [
    (layernorm, (70, 33)), (linear, ((70,), 33, 9)), (feedforward, ((70,), 5, 16)), (projections, (2, 7, 5, 12, 8)),
    (embedding, ((2, 75), 97, 3, 0.3)), (layerwise_error, (1.5, 2, 5, 9, 2, 70)),
]  # fmt: skip
PAIRS = [(maker, case) for maker, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(
    ("maker", "case"),
    [slow(*pair) if pair in LARGE else pair for pair in PAIRS],
    ids=[f"{maker.__name__}{case}" for maker, case in PAIRS],
)
def test_equals_textbook(place, maker, case):
    arguments, douts, options = maker(*case)
    assert_equal_to_textbook(maker.__name__, arguments, *douts, **options)


def head_difference_case(B, T, H, Dh, D):
    return normal((B, T, H, Dh), (H * Dh, D))


def log_probabilities_case(*first):
    (x,), targets = normal((*first, D)), 0
    (_, _, *rest), _, _ = adaptive_softmax(targets)
    return x, *rest


WITHOUT_BACKWARD = [
    *(("add", normal(shape, shape)) for shape in ((257,), (2, 3, 50), (1,), (0, 3), ())),
    *(("log_softmax", (5 * normal(shape)[0],)) for shape in ((2, 2 * FOUR + 129), (3, FOUR - 1), (2, 3, 50), (1, 1))),
    *(("head_difference", (*head_difference_case(*shape), scale)) for shape, scale in (
        ((1, 33, 2, 9, 34), 1.5), ((2, 3, 3, 5, 7), 1.0), ((1, 1, 1, 1, 1), 1.5), ((2, 3, 0, 5, 4), 1.0),
        ((0, 3, 2, 2, 3), 1.0))),
    *(("adaptive_log_probabilities", log_probabilities_case(*first)) for first in ((2, 3), (3,), ())),
    ("join", (normal((3,), (0,), (300,)),)),
    *((name, (*normal(shape), *rest)) for name, shape, *rest in (
        ("take_slices", (70, 24), [1, 5, 0], 1, 4), ("take_slices", (6, 5, 11), [1, 0], 0, 3),
        ("take_slices", (7,), (3,), 0, 1), ("take_slices", (4, 6), [], 1, 2), ("take_slices", (0, 6), [2], 1, 2),
        ("put_slices", (70, 12), [1, 5, 0], 1, 6, 4), ("put_slices", (6, 5, 11), [2, 0], 0, 3, 3),
        ("put_slices", (1,), (3,), 0, 7, 1), ("put_slices", (4, 0), [], 1, 3, 2))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), WITHOUT_BACKWARD, ids=[name for name, _ in WITHOUT_BACKWARD])
def test_without_backward_equals_textbook(place, name, arguments):
    got, expected = (
        getattr(module, name)(*move([*arguments])) for module, move in ((cuda, on_device), (ops, in_float64))
    )
    assert_close(got, expected)


EVERY = [(maker.__name__, *maker(*cases[0])) for maker, cases in CASES.items()]
EVERY += [(name, arguments, (), {}) for name, arguments in dict(WITHOUT_BACKWARD).items() if arguments[0] is not None]
EVERY.append(("add", normal((3, 5), (3, 5)), (), {}))
every_operation = pytest.mark.parametrize(
    ("name", "arguments", "douts", "options"), EVERY, ids=[name for name, *_ in EVERY]
)
IN_EITHER_MEMORY = {("hard_concrete", 1), ("top_k", 1)}  # the noise
UNCHECKED = {"adaptive_log_probabilities"}  # as in the textbook
WRONG = {
    "must be in the GPU's memory, got ndarray": lambda x: x,
    "must be float32 for the cuda backend, got int32": lambda x: to_device(x.astype(np.int32)),
}


def call(name, arguments, options):
    """An operation, or its forward; a seed among the options becomes a generator."""
    if "seed" in options:
        options = {name: x for name, x in options.items() if name != "seed"} | {"rng": np.random.default_rng(5)}
    return getattr(cuda, name if hasattr(cuda, name) else f"{name}_forward")(*arguments, **options)


def results(name, arguments, douts, options):
    found = call(name, arguments, options)
    return (found[0], getattr(cuda, f"{name}_backward")(*douts, found[1])) if douts else found


def view_of(x):
    """The same numbers in the GPU's memory, with NaN between their rows, and not aligned to 16 bytes."""
    if isinstance(x, list) and x and is_float32(x[0]):
        return [*map(view_of, x)]
    if not is_float32(x) or not x.ndim:
        return on_device(x)
    wider = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, np.float32)
    wider[..., 1:-2] = x
    return to_device(wider)[(*(x.ndim - 1) * (slice(None),), slice(1, -2))]


@pytest.mark.slow
@every_operation
def test_views_that_are_not_aligned(place, name, arguments, douts, options):
    expected = results(name, on_device([*arguments]), on_device([*douts]), options)
    got = results(name, [*map(view_of, arguments)], [*map(view_of, douts)], options)
    assert_close(got, mapped(to_host, expected))


@pytest.mark.parametrize("maker", [l0, layerwise_error, cross_entropy, adaptive_softmax])
def test_a_loss_has_its_gradient_in_either_memory(place, maker):
    arguments, (dout,), options = maker(*CASES[maker][0])
    _, cache = call(maker.__name__, on_device([*arguments]), options)
    backward = getattr(cuda, f"{maker.__name__}_backward")
    found = [backward(x, cache) for x in (dout, to_device(np.array(dout, np.float32)))]
    assert_same_bits(*mapped(to_host, found))


def spoilt(x, convert):
    """An argument with its array, or the last array of its list, converted; None if it has no array."""
    if isinstance(x, list):
        return [*on_device(x[:-1]), convert(x[-1])] if x and is_float32(x[-1]) else None
    return convert(x) if is_float32(x) else None


@every_operation
def test_arrays_of_another_memory_type_or_shape(place, name, arguments, douts, options):
    """Each argument by itself is refused, and so is a gradient of another shape."""
    given = on_device([*arguments])
    for n, x in enumerate(arguments):
        for said, convert in WRONG.items():
            wrong = spoilt(x, convert)
            if wrong is not None and (name, n) not in IN_EITHER_MEMORY and name not in UNCHECKED:
                with pytest.raises(ValueError, match=said):
                    call(name, [*given[:n], wrong, *given[n + 1 :]], options)
    if douts and is_float32(douts[-1]) and name != "context":
        other = to_device(np.ones((2, 1, 1, 1), np.float32))
        with pytest.raises(ValueError, match=r"must have shape \(.* like the output, got \(2, 1, 1, 1\)"):
            getattr(cuda, f"{name}_backward")(*on_device([*douts[:-1]]), other, call(name, given, options)[1])


# A few numbers for each head, or nothing but noise: drawn and looked at in main memory.
HOST = {"draw_gumbel", "draw_noise", "p_open", "sigmoid"}
LEFT = HOST | {"context_backward"}  # of views it makes a view, wherever they lie


@pytest.mark.parametrize("name", ["cuda", "cuda-tf32"])
def test_every_operation_is_there_with_the_textbooks_signature(place, name):
    backend = get_backend(name)
    left = {operation for operation in ops.__all__ if getattr(backend, operation) is getattr(ops, operation)}
    assert left == LEFT
    for operation in set(ops.__all__) - LEFT:
        expected, got = (inspect.signature(getattr(module, operation)).parameters for module in (ops, backend))
        # `parts` is how the textbook's adaptive operations are given others; a `precision` is a GPU's own affair.
        assert [(p.name, p.kind, p.default) for p in got.values() if p.name != "precision"] == [
            (p.name, p.kind, p.default) for p in expected.values() if p.name != "parts"
        ], operation


def test_tf32_has_its_own_products_and_nothing_else(place):
    one, other = map(get_backend, ("cuda", "cuda-tf32"))
    different = {
        name.removesuffix("_forward") for name in ops.__all__ if getattr(one, name) is not getattr(other, name)
    }
    of_vocabulary = {"adaptive_embedding", "adaptive_log_probabilities", "adaptive_softmax"}
    of_layers = {"feedforward", "head_networks", "linear", "persistent_memory", "projections"}
    assert different == of_vocabulary | of_layers
