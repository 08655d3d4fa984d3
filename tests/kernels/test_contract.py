"""What every backend promises of every operation of gradcheck's catalogue, beside right gradients.

A new operation is tested here as soon as it has its entry there. The textbook in float64 says what is right; that its
gradients are right is seen in tests/gradcheck, and its formulas in tests/ops.
"""

import copy
import re
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune import ops
from tinyprune.gradcheck.catalogue import SIZES, Case, Dimensions, no_backward, operation_cases, other_cases
from tinyprune.kernels.backend import get_backend

from .compare import DEVICES, adamw_update, assert_close, assert_same_bits, leaves, mapped

SINGLE = Dimensions(B=1, T=1, M=0, H=1, Dh=1, N=1, D=1, F=1, V=6)
VECTORS = Dimensions(B=2, T=32, M=32, H=2, Dh=16, N=64, D=64, F=32, V=128)
RAGGED = Dimensions(B=3, T=33, M=31, H=5, Dh=17, N=65, D=37, F=61, V=131)
# These sizes are so large that threads share them.
LARGE = Dimensions(B=5, T=70, M=61, H=3, Dh=13, N=97, D=37, F=131, V=301, lead=(3, 181))
# For blocks of a GPU: more rows than a block sums and than a tile has, and rows that can be read four at a time; rows
# longer than a block has threads, of which each takes several, and that nothing divides; more than one tile of each.
MANY_ROWS = Dimensions(B=3, T=9, M=5, H=3, Dh=8, N=9, D=12, F=16, V=511, lead=(70,))
LONG_ROWS = Dimensions(B=1, T=18, M=15, H=2, Dh=7, N=17, D=130, F=67, V=1153, lead=(2, 3))
NO_HEADS, NO_TEXTS = SIZES._replace(H=0), SIZES._replace(B=0, lead=(2, 0, 3))

# Widths are whole vectors, and one more or less.
widths = st.sampled_from([1, 3, 7, 8, 13, 15, 16, 17, 31, 32, 33, 61, 64, 127])
any_sizes = st.builds(
    Dimensions,
    B=st.integers(1, 3),
    T=widths,
    M=st.sampled_from([0, 1, 5, 31, 64]),
    H=st.sampled_from([1, 2, 3, 5]),
    Dh=st.sampled_from([1, 3, 7, 8, 16, 17, 32]),
    N=st.sampled_from([0, 1, 31, 64, 97]),
    D=widths,
    F=widths,
    V=st.sampled_from([6, 7, 16, 33, 64, 131]),
    lead=st.sampled_from([None, (), (1,), (5,), (1, 31), (33,), (97,), (2, 3, 4)]),
)


@cache
def cases(backend: str, sizes: Dimensions = SIZES) -> dict[str, Case]:
    own = get_backend(backend)
    every = *operation_cases(own, sizes), *other_cases(own, sizes)
    return {case.operation: case for case in every}


def engine_has(operation: str) -> bool:
    """Whether an operation is one of the engine's, and not one of those of gates, which need none."""
    name = operation.split(" (")[0]
    return name in ops.OPERATIONS or f"{name}_forward" in ops.OPERATIONS


# These take no complex numbers.
REAL = {"squared_norm", "squared_norms", "clipping", "lamb_update", "adamw_updates"}
REAL |= {"scales_update", "scales_update (no offsets)"}
# These are computed in main memory, with every engine.
HOST = {name for name in cases("numpy") if not engine_has(name)}
IN_MAIN_MEMORY = {"ids", "targets", "index", "gate", "factors", "weights"}  # arguments
NAMES = list(cases("numpy"))


def is_compiled(operation: str, suffix: str = "_forward") -> bool:
    """Whether Numba computes an operation, or primitives of it; NumPy computes those of `HOST`, and a few others."""
    name = operation.split(" (")[0]
    name = name + suffix if hasattr(ops, name + suffix) else name
    return operation not in HOST and getattr(get_backend("numba"), name) is not getattr(ops, name)


COMPILED = [name for name in NAMES if is_compiled(name)]
each_case = pytest.mark.parametrize("name", NAMES)
each_compiled = pytest.mark.parametrize("name", COMPILED)


def of_dtype(value, dtype):
    return mapped(lambda x: x.astype(dtype) if x.dtype.kind in "fc" else x, value)


def draw_dout(out, dtype):
    """A gradient with respect to the output; of a scalar, large enough for its gradients not to be small."""
    rng = np.random.default_rng(1)

    def draw(x):
        return rng.standard_normal(x.shape).astype(dtype) if x.ndim else dtype(100)

    return mapped(draw, out)


def run(backend: str, case: Case, inputs: dict, dtype, dout=None, **constants) -> tuple:
    """Output and gradients in main memory. What is given is not modified, and backward can be called again."""
    own = get_backend(backend)
    given = [x if name in IN_MAIN_MEMORY else mapped(own.to_device, x) for name, x in inputs.items()]
    out, kept = case.forward(*given, **constants)
    dout = draw_dout(mapped(own.to_host, out), dtype) if dout is None else dout
    on_device = mapped(lambda x: own.to_device(x) if x.ndim else x, dout)
    before = copy.deepcopy(mapped(own.to_host, [given, out, on_device]))
    gradients = copy.deepcopy(mapped(own.to_host, case.backward(on_device, kept)))
    assert_same_bits(mapped(own.to_host, case.backward(on_device, kept)), gradients)
    assert_same_bits(mapped(own.to_host, [given, out, on_device]), before)
    return before[1], gradients


@cache
def textbook(name: str, sizes: Dimensions = SIZES) -> tuple:
    case = cases("numpy", sizes)[name]
    return run("numpy", case, case.inputs, np.float64)


def assert_like_the_textbook(backend: str, name: str, sizes: Dimensions, dtype) -> None:
    """Results and gradients, their shapes and dtypes; or the same error."""
    case = cases(backend, sizes)[name]
    inputs = of_dtype(case.inputs, dtype)
    try:
        expected = textbook(name, sizes)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            run(backend, case, inputs, dtype)
        return
    assert_close(run(backend, case, inputs, dtype), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_compiled
@settings(max_examples=4)
@given(sizes=any_sizes)
@example(sizes=SIZES)
@example(sizes=SINGLE)
@example(sizes=VECTORS)
@example(sizes=RAGGED)
@example(sizes=LARGE)
@example(sizes=NO_HEADS)
@example(sizes=NO_TEXTS)
def test_compiled_like_the_textbook(dtype, name, sizes):
    assert_like_the_textbook("numba", name, sizes, dtype)


@pytest.mark.parametrize(
    "sizes",
    [SIZES, SINGLE, NO_HEADS, NO_TEXTS],
    ids=["small", "single", "no heads", "no texts"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@each_case
def test_other_dtypes_like_the_textbook(dtype, name, sizes):
    if dtype is not np.complex128 or name not in REAL:
        assert_like_the_textbook("numpy", name, sizes, dtype)


@pytest.mark.parametrize(
    "sizes",
    [SIZES, SINGLE, MANY_ROWS, LONG_ROWS, NO_HEADS, NO_TEXTS],
    ids=["small", "single", "many rows", "long rows", "no heads", "no texts"],
)
@pytest.mark.parametrize("backend", DEVICES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in HOST])
def test_devices_like_the_textbook(backend, name, sizes):
    assert_like_the_textbook(backend, name, sizes, np.float32)


VIEWS = {
    "gaps": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "rows with gaps": lambda x: np.pad(x, [(1, 2)] * x.ndim)[(slice(1, -2),) * x.ndim] if x.ndim else x,
    "Fortran": np.asfortranarray,
    "backwards": lambda x: np.flip(np.flip(x).copy()),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}


@pytest.mark.parametrize("sizes", [SIZES, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("backend", "name"),
    [*(("numpy", n) for n in NAMES), *(("numba", n) for n in COMPILED)],
)
def test_views_like_arrays_without_gaps(view, backend, name, sizes):
    case = cases(backend, sizes)[name]
    out, _ = textbook(name, sizes)
    dout = draw_dout(out, np.float64)
    inputs, dout = (mapped(VIEWS[view], value) for value in (case.inputs, dout))
    arrays = {key: x for key, x in case.constants.items() if isinstance(x, np.ndarray)}
    constants = {key: VIEWS[view](x) for key, x in arrays.items()}
    found = run(backend, case, inputs, np.float64, dout, **constants)
    assert_close(found, textbook(name, sizes), np.float64)


@pytest.mark.parametrize("sizes", [SIZES, LARGE], ids=["small", "large"])
@each_compiled
def test_threads_do_not_matter(name, sizes):
    backend, case = get_backend("numba"), cases("numba", sizes)[name]
    inputs = of_dtype(case.inputs, np.float32)
    results = []
    for threads in (1, 2, 2):
        with backend.threads(threads):
            results.append(run("numba", case, inputs, np.float32))
    assert_same_bits(results[1:], [results[0]] * 2)


FROZEN = [name for name in NAMES if "frozen" in name]


def run_frozen(backend: str, name: str, **changes) -> tuple:
    """Output and every gradient of a frozen case, and whether its cache holds the activations, in float32."""
    own, case = get_backend(backend), cases(backend)[name]
    x, *others = (
        value.astype(np.float32) if argument in IN_MAIN_MEMORY else own.to_device(value.astype(np.float32))
        for argument, value in case.inputs.items()
    )
    out, kept = case.forward(x, *others, **changes)
    arrays = [array for array in leaves(kept) if isinstance(array, type(x))]

    def shared(array):
        return array.storage is x.storage if own.on_device else np.shares_memory(array, x)

    held = any(map(shared, arrays))
    dout = mapped(own.to_device, draw_dout(mapped(own.to_host, out), np.float32))
    backward = getattr(own, f"{name.split(' (')[0]}_backward")
    gradients = backward(dout, kept)  # of projections a tuple
    return mapped(own.to_host, out), mapped(own.to_host, gradients), held


@pytest.mark.parametrize("backend", ["numpy", "numba", *DEVICES])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parameters_have_no_gradients_and_hold_no_activations(backend, name):
    """The other gradients are the same: up to rounding where heads have factors, which are then multiplied later."""
    out, gradients, held = run_frozen(backend, name)
    expected_out, expected, held_unfrozen = run_frozen(backend, name, frozen=False)
    # The gradients of the gates of blocks need the units.
    assert held_unfrozen and (not held or name == "blocks (frozen)")
    assert_same_bits(out, expected_out)
    inputs, constants = cases(backend)[name].inputs, cases(backend)[name].constants
    assert [i for i, x in enumerate(gradients) if x is not None] == [0, len(expected) - 1][: len(inputs)]
    for got, wanted in zip(gradients, expected, strict=True):
        if got is not None and "scale" in constants:
            assert_close(got, wanted, np.float32)
        elif got is not None:
            assert_same_bits(got, wanted)


def float_places(inputs: dict) -> list[tuple[str, int | None]]:
    """The arrays of floats among the inputs: names, and places in lists."""
    return [
        (name, i if isinstance(value, list) else None)
        for name, value in inputs.items()
        for i, x in enumerate(leaves(value))
        if x is not None and x.dtype.kind == "f" and x.size
    ]


def changed(inputs: dict, place: tuple[str, int | None], change) -> dict:
    """The inputs with one array replaced by `change` of it."""
    name, i = place
    value = change(inputs[name] if i is None else inputs[name][i])
    return inputs | {name: value if i is None else [*inputs[name][:i], value, *inputs[name][i + 1 :]]}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@each_case
def test_nan_shows_whichever_argument_it_is_in(backend, name):
    """A model that has diverged must not look healthy."""
    case = cases(backend)[name]
    for place in float_places(case.inputs):
        inputs = changed(case.inputs, place, lambda x: np.full_like(x, np.nan))
        results = run(backend, case, inputs, np.float64)
        seen = any(np.isnan(x).any() for x in leaves(results) if x is not None)
        # a cluster that is absent is not read, a unit that is NaN is not positive, and what is overwritten is gone
        unread = "absent" in name or place[0] == "where" or (name, place[0]) == ("set_rows", "x")
        assert seen or unread, place


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_compiled
def test_one_bad_number_spoils_what_it_spoils_in_the_textbook(bad, name):
    """Outputs and gradients; the number is the first entry, in a whole vector, or the last, after them.

    Not so in attention, whose kernels do not touch keys out of sight, and where a ReLU multiplies infinity by 0.
    """
    rectified = "feedforward", "head_networks", "matmul (bias", "matmul (where", "units_gradient"
    has_relu = name.startswith(rectified)
    if name.lower().startswith("attention") or (has_relu and not np.isnan(bad)):
        return
    sizes = RAGGED
    own, expected = (cases(backend, sizes)[name] for backend in ("numba", "numpy"))

    def spoilt(x, at):
        x = x.copy()
        x.flat[at] = bad
        return x

    for place in float_places(own.inputs):
        for at in (0, -1):
            inputs = changed(own.inputs, place, lambda x, at=at: spoilt(x, at))
            with np.errstate(all="ignore"):
                both = ("numba", own), ("numpy", expected)
                results = [run(*pair, inputs, np.float64) for pair in both]
            for one, other in zip(*map(leaves, results), strict=True):
                if other is not None:
                    assert_array_equal(np.isfinite(one), np.isfinite(other), err_msg=f"{place} {at}")


def outcome(compute):
    try:
        return compute()
    except Exception as error:
        return error


def reshaped(x: np.ndarray) -> list[np.ndarray]:
    """The array in wrong shapes: an entry more along each axis, an axis less, an axis more."""
    longer = [np.resize(x, [n + (axis == i) for i, n in enumerate(x.shape)]) for axis in range(x.ndim)]
    return [*longer, *([x[0]] if x.ndim and len(x) else []), x[None]]


def refused(error, *names: str) -> bool:
    """Whether it is an error that says what one of these arguments must be, and not one of NumPy's."""
    message = str(error)
    named = any(name.removesuffix("s") in message for name in names)
    wording = re.search(r"\bmust\b|needed", message) and named
    return isinstance(error, ValueError) and bool(wording)


def assert_same_outcome(backend: str, case: Case, argument: str, inputs: dict, **constants) -> bool:
    """Where the textbook names the argument in an error, so does the backend in the same words; where it finds a
    result, both have its shapes. Returns whether there was an error that says what is wrong."""
    plain = cases("numpy")[case.operation]
    expected = outcome(lambda: plain.forward(*inputs.values(), **constants)[0])
    got = outcome(lambda: case.forward(*inputs.values(), **constants)[0])
    if refused(expected, argument):
        assert refused(got, argument)
        assert str(got) == str(expected)
    elif isinstance(expected, Exception):
        assert isinstance(got, Exception)
    else:
        assert [np.shape(x) for x in leaves(got)] == [np.shape(x) for x in leaves(expected)]
    return refused(expected, *case.inputs, *case.constants)


# Of any shape.
FREE = {"dropout", "embedding", "squared_norm", "squared_norms", "log_softmax", "l0"}
FREE |= {"adaptive_log_probabilities", "clipping", "gelu", "sigmoid", "p_open", "column_sums"}
FREE |= {"positions (none)", "rotary (none)"}
FREE |= {f"hard_concrete ({kind}, evaluation)" for kind in ("soft", "straight-through")}
FREE |= {"repeat_heads (each its own)"}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@each_case
def test_arrays_of_wrong_shape_or_missing_are_named(backend, name):
    case = cases(backend)[name]
    for argument, i in float_places(case.inputs):
        wrong = [
            assert_same_outcome(backend, case, argument, changed(case.inputs, (argument, i), lambda x, bad=bad: bad))
            for bad in reshaped(leaves(case.inputs[argument])[i or 0])
        ]
        assert any(wrong) or {name, name.split(" (")[0]} & FREE, argument
        assert_same_outcome(backend, case, argument, case.inputs | {argument: None})
    for argument, value in case.constants.items():
        if isinstance(value, np.ndarray):
            bad = reshaped(value)
            wrong = [assert_same_outcome(backend, case, argument, case.inputs, **{argument: x}) for x in bad]
            assert any(wrong), argument


NUMBERS = {"rate", "dropout", "span", "T", "beta", "gamma", "zeta", "read", "C", "Dh", "index"}
NUMBERS |= {"base", "first", "rope_base"}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@each_case
def test_numbers_out_of_range_are_named(backend, name):
    case = cases(backend)[name]
    given = [key for key, value in case.constants.items() if value is not None]
    for argument in NUMBERS.intersection(given):
        bad = ([-1], [99]) if argument == "index" else (-1, 10**6)
        wrong = [assert_same_outcome(backend, case, argument, case.inputs, **{argument: x}) for x in bad]
        assert any(wrong) or name.startswith(("l0", "p_open")) or "update" in name, argument
    for argument in {"ids", "targets"} & set(case.inputs):
        right = case.inputs[argument]
        for bad in (right * 1.0, right - 99, right + 99):
            inputs = case.inputs | {argument: bad}
            assert assert_same_outcome(backend, case, argument, inputs), argument


def is_primitive(operation: str) -> bool:
    """Whether an operation has a kernel, rather than being made of others that have."""
    name = operation.split(" (")[0]
    own = get_backend("numba")
    return not hasattr(getattr(own, name if hasattr(own, name) else f"{name}_forward"), "__self__")


@pytest.mark.parametrize("dtype", [np.float16, np.complex128, np.int64])
@pytest.mark.parametrize("name", [name for name in COMPILED if is_primitive(name)])
def test_wrong_dtypes_are_named_by_compiled_kernels(dtype, name):
    case = cases("numba")[name]
    for place in float_places(case.inputs):
        inputs = changed(case.inputs, place, lambda x: x.astype(dtype))
        with pytest.raises(ValueError, match=f"got {np.dtype(dtype)}") as error:
            case.forward(*inputs.values())
        assert refused(error.value, place[0]) or place[0] in ("arrays", "grads")
    for dout in wrong_gradients(case, dtype):
        with pytest.raises(ValueError, match=r"d\w+ must be float64 .* like the output"):
            case.backward(*dout)


def wrong_gradients(case: Case, dtype) -> list[tuple]:
    """Gradients with respect to an output, of wrong shape and of wrong dtype, and the cache."""
    out, kept = case.forward(*case.inputs.values())
    if not is_compiled(case.operation, "_backward") or case.backward is no_backward or not np.ndim(leaves(out)[0]):
        return []
    douts = out if isinstance(out, tuple) else (out,)
    wrong = [(*douts[:i], bad, *douts[i + 1 :]) for i, x in enumerate(douts) for bad in (x.astype(dtype), x[1:])]
    return [(dout if isinstance(out, tuple) else dout[0], kept) for dout in wrong]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("backend", ["numba", *DEVICES])
def test_ids_of_any_integer_type_that_may_be_filled_anew(backend, dtype):
    own, rng, ids = get_backend(backend), np.random.default_rng(2), np.arange(12) ** 2 % 11
    drawn = [rng.standard_normal(shape, np.float32) for shape in ((11, 5), (12, 11), (12, 5))]
    E, logits, dout = map(own.to_device, drawn)
    strided = np.repeat(ids, 2).astype(dtype)[::2]

    def embedded(x):
        return own.embedding_forward(x, E, dropout=0.2, rng=np.random.default_rng(3))

    found = [embedded(x) for x in (strided, ids)]
    losses = [own.cross_entropy_forward(logits, x)[0] for x in (strided, ids)]
    strided[:] = 0
    found = [[out, own.embedding_backward(dout, kept)] for out, kept in found]
    assert_same_bits(*mapped(own.to_host, list(zip(found, losses, strict=True))))


@pytest.mark.parametrize(("start", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("backend", ["numpy", "numba", *DEVICES])
def test_lamb_with_a_norm_of_zero(backend, start, gradient):
    """A tensor of zeros leaves zero; one without a direction stays where it is."""
    own, constants = get_backend(backend), ops.adamw.AdamConstants(0.8, 0.95, eps=1e-12, step=1)
    arrays = [own.to_device(np.full(5, value, np.float32)) for value in (start, gradient, 0, 0)]
    own.lamb_update(*arrays, lr=0.1, decay=0.0, constants=constants)
    assert_allclose(own.to_host(arrays[0]), np.full(5, start - 0.1 * gradient), rtol=1e-6)


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
@pytest.mark.parametrize("backend", ["numpy", "numba", *DEVICES])
def test_an_update_with_a_factor_that_is_no_number_changes_nothing(backend, rule):
    """As `clipping` finds it where a loss is infinite: alone, or where it leaves the factor."""
    own = get_backend(backend)
    update = {"adamw": partial(adamw_update, own)}.get(rule) or getattr(own, f"{rule}_update")
    host = np.random.default_rng(1).random((4, 5)).astype(np.float32)
    for loss in (np.float32(np.inf), np.float32(np.nan), np.float32(1)):
        arrays = [own.to_device(x.copy()) for x in host]
        there = own.to_device(np.array(loss)) if own.on_device else loss
        norm, found = own.clipping(arrays[1:2], [there, 0.5], max_norm=0.1)
        assert own.reading([norm, loss])()[0] == pytest.approx(np.linalg.norm(host[1]), rel=1e-6)
        for factor in (found, float(found)):
            shared = {"constants": ops.adamw.AdamConstants(0.8, 0.95, 1e-3, 1, factor)}
            update(*arrays, lr=0.1, decay=0.3, **shared)
            same = [np.array_equal(own.to_host(x), y) for x, y in zip(arrays, host, strict=True)]
            assert all(same) if not np.isfinite(loss) else not any(same[:1] + same[2:])


def test_the_catalogue_has_every_operation():
    names = {name.split(" (")[0] for name in NAMES}
    operations = {name.removesuffix("_forward").removesuffix("_backward") for name in ops.__all__}
    # These do several at once of what is there; projections and others use them.
    several = {"matmuls", "weight_gradients"}
    assert names == operations - several - {"Engine", "draw_noise"}
