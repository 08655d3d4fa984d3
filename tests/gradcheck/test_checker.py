"""The checker itself: what it lets pass, what it catches, and what it says then."""

import numpy as np
import pytest

from tinyprune.gradcheck import assert_gradients, check_gradients, checker
from tinyprune.ops import embedding_backward, embedding_forward, linear_backward, linear_forward

each_mode = pytest.mark.parametrize("mode", ["complex", "central"])
LINEAR = {"x": (4, 3), "W": (3, 2), "b": (2,)}


def square_forward(x):
    return x * x, x


def square_backward(dout, x):
    return 2 * x * dout


def square_backward_off_by(error, index):
    def off(dout, x):
        dx = square_backward(dout, x)
        dx[index] += error
        return dx

    return off


def test_a_failure_names_function_argument_worst_entry_expected_and_got_and_nothing_that_is_right(rng):
    def wrong_weights(dout, cache):
        dx, dW, db = linear_backward(dout, cache)
        return dx, dW + np.array([[0, 1e-3], [0, 0], [7.0, 0]]), db

    inputs = [rng.standard_normal(shape) for shape in LINEAR.values()]
    records = check_gradients(linear_forward, wrong_weights, *inputs, argument_names=[*LINEAR])
    (record,) = [record for record in records if not record.passed]
    assert len(records) == 3 and record.index == (2, 0)
    assert record.got - record.expected == pytest.approx(7.0)
    with pytest.raises(AssertionError) as failure:
        assert_gradients(linear_forward, wrong_weights, *inputs, name="my linear", argument_names=[*LINEAR])
    for part in (
        "my linear: wrong gradient with respect to W",
        "worst at W[2, 0]",
        f"expected {record.expected:+.12e}, got {record.got:+.12e}",
        f"relative error {record.relative_error:.2e} (allowed 1e-12, complex mode)",
    ):
        assert part in str(failure.value)
    assert str(failure.value).count("wrong gradient") == 1


def test_nan_is_the_worst_entry(rng):
    (record,) = check_gradients(square_forward, square_backward_off_by(np.nan, 1), rng.standard_normal(3))
    assert not record.passed and record.index == (1,) and np.isnan(record.got)


# Outside of a test run this is only a warning.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_a_forward_that_casts_to_float(rng):
    def cast_forward(x):
        return x.astype(np.float64) ** 2, x

    with pytest.raises(AssertionError, match="cast_forward: forward turned complex inputs into a real output"):
        check_gradients(cast_forward, square_backward, rng.standard_normal(3))
    assert_gradients(cast_forward, square_backward, rng.standard_normal(3), mode="central")


@pytest.mark.parametrize(
    ("forward", "backward", "inputs", "who", "what"),
    [
        (square_forward, lambda dout, x: np.multiply(dout, 2 * x, out=dout), [np.ones(3)], "backward", "dout"),
        (square_forward, lambda dout, x: np.multiply(x, 2, out=x) * dout, [np.ones(3)], "backward", "its cache"),
        (lambda x: (np.multiply(x, 2, out=x), 0), lambda dout, _: 2 * dout, [np.ones(3)], "forward", "x"),
        (lambda ids, x: (x[np.add(ids, 1, out=ids)], 0), None, [np.array([0, 1]), np.ones(3)], "forward", "ids"),
    ],
)
def test_what_is_given_may_not_be_modified(forward, backward, inputs, who, what):
    with pytest.raises(AssertionError, match=f"{forward.__name__}: {who} must not modify {what}"):
        check_gradients(forward, backward, *inputs)


@pytest.mark.parametrize(
    ("keep", "complaint"),
    [
        (lambda dx, dW, db: (dx, dW), "backward must return 3 gradients, got 2"),
        (lambda dx, dW, db: dx, "backward must return 3 gradients, got 1"),
        (lambda dx, dW, db: (dx, dW, db, db), "backward must return 3 gradients, got 4"),
        (lambda dx, dW, db: (dx, dW.T, db), r"gradient of W must have shape \(3, 2\), got \(2, 3\)"),
        (lambda dx, dW, db: (dx, dW, db[None]), r"gradient of b must have shape \(2,\), got \(1, 2\)"),
        (lambda dx, dW, db: (dx, dW, None), "1 gradients expected for b, got 0"),
    ],
)
def test_gradients_of_wrong_number_or_shape(keep, complaint, rng):
    case = linear_forward, lambda *given: keep(*linear_backward(*given)), *map(rng.standard_normal, LINEAR.values())
    with pytest.raises(AssertionError, match=complaint):
        check_gradients(*case, argument_names=[*LINEAR])


@pytest.mark.parametrize(
    ("mode", "error", "passes"), [("complex", 1e-10, False), ("central", 1e-10, True), ("central", 1e-5, False)]
)
def test_the_limits_of_both_modes(mode, error, passes, rng):
    """A relative error of 1e-10 is a bug in complex mode, and within the noise of central differences."""
    case = square_forward, lambda dout, x: square_backward(dout, x) * (1 + error), rng.standard_normal(5)
    assert check_gradients(*case, mode=mode)[0].passed == passes


@each_mode
def test_a_gradient_that_is_truly_zero_may_be_rounding_noise(mode, rng):
    """A bias on all scores of a softmax changes nothing: its gradient is a sum that cancels to about 1e-17."""

    def forward(scores, bias):
        e = np.exp(scores + bias)
        return e / e.sum(), e / e.sum()

    def backward(dout, p):
        ds = p * (dout - (dout * p).sum())
        return ds, ds.sum(keepdims=True)

    records = check_gradients(forward, backward, rng.standard_normal(9), np.array([0.3]), mode=mode)
    assert all(record.passed for record in records)


def test_none_is_passed_on_and_its_gradient_must_be_none(rng):
    inputs = rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), None
    records = check_gradients(linear_forward, linear_backward, *inputs, argument_names=[*LINEAR])
    assert [(record.argument, record.passed) for record in records] == [("x", True), ("W", True)]
    with pytest.raises(AssertionError, match="the gradient of b, which is None, must be None"):
        check_gradients(lambda x, b: (2 * x, None), lambda dout, _: (2 * dout, dout), np.ones(3), None)


def test_lists_of_arrays_each_have_a_record(rng):
    """out = Σ_i weights_i · Σ parts_i."""
    parts = [rng.standard_normal((2, 3)), rng.standard_normal(4)]
    weights = [np.array(0.7), np.array(-2.0)]

    def forward(parts, weights):
        return sum(w * x.sum() for w, x in zip(weights, parts, strict=True)), None

    def check(change):
        def backward(dout, _):
            dparts = [np.full_like(x, dout * w) for w, x in zip(weights, parts, strict=True)]
            return change(dparts), [np.asarray(dout * x.sum()) for x in parts]

        records = check_gradients(forward, backward, parts, weights, argument_names=["parts", "weights"])
        return {record.argument: record.passed for record in records}

    right = {"parts[0]": True, "parts[1]": True, "weights[0]": True, "weights[1]": True}
    assert check(lambda dparts: dparts) == right
    assert check(lambda dparts: [dparts[0], 0 * dparts[1]]) == right | {"parts[1]": False}
    with pytest.raises(AssertionError, match="2 gradients expected for parts, got 1"):
        check(lambda dparts: dparts[:1])


def test_several_outputs_have_a_dout_each(rng):
    def split_forward(x):
        return (x[:2], x[2:] ** 2), x

    def split_backward(dout, x):
        return np.concatenate([dout[0], 2 * x[2:] * dout[1]])

    assert_gradients(split_forward, split_backward, rng.standard_normal(5))
    with pytest.raises(AssertionError, match="wrong gradient with respect to x\n"):
        assert_gradients(split_forward, lambda dout, x: np.concatenate(dout), rng.standard_normal(5))


def test_integers_and_options_are_passed_on_without_a_gradient(rng):
    def pick_forward(E, ids, name):
        assert ids.dtype == np.int64 and name == "rows"
        return embedding_forward(ids, E)

    inputs = rng.standard_normal((4, 3)), np.array([2, 0, 2]), "rows"
    assert_gradients(pick_forward, embedding_backward, *inputs)
    # Nones for what has no gradient are allowed, as in PyTorch.
    assert_gradients(pick_forward, lambda *given: (embedding_backward(*given), None, None), *inputs)
    with pytest.raises(AssertionError, match="backward must return 1 gradient, got 3"):
        assert_gradients(pick_forward, lambda *given: (embedding_backward(*given), np.ones(3), None), *inputs)


def test_float32_is_checked_in_float64_and_inputs_stay_as_they_are(rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    before, seen = x.copy(), set()

    def forward(x):
        seen.add(x.dtype)
        return square_forward(x)

    assert_gradients(forward, square_backward, x)
    assert seen == {np.dtype(np.float64), np.dtype(np.complex128)}
    assert x.dtype == np.float32 and np.array_equal(x, before)


def test_what_other_people_write(rng, capfd, monkeypatch):
    """Forwards without a cache, at random, with a kink, slow ones; options of the function; numbers in a list."""
    x = rng.standard_normal(5)

    def powers(x, n):
        return x**n, (x, n)

    with pytest.raises(TypeError, match=r"n is no option of this check; .*: lambda \*inputs: powers\(\*inputs, n=3\)"):
        assert_gradients(powers, square_backward, x, n=3)
    for forward, said in ((lambda x: x * x, "got one ndarray"), (lambda x: (x, x, None), "got 3 values")):
        with pytest.raises(AssertionError, match=rf"forward must return \(out, cache\), .* {said}"):
            assert_gradients(forward, square_backward, x)
    with pytest.raises(AssertionError, match=r"two calls of forward .* differ, .*default_rng\(0\)"):
        assert_gradients(lambda x: (x * rng.random(), x), square_backward, x)
    at_kink = np.array([1.0, 0.0, -1.0])
    with pytest.raises(
        AssertionError, match=r"worst at x\[1\].*\n.* but a kink: from the left [+-]0, from the right [+-]"
    ):
        assert_gradients(lambda x: (x * (x.real > 0), x), lambda dout, x: dout * (x >= 0), at_kink)
    with pytest.raises(ValueError, match=r"x must be an array, got a list; give np\.array\(x\)"):
        assert_gradients(square_forward, square_backward, [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"x must not be empty"):
        assert_gradients(square_forward, square_backward, np.zeros((0, 3)))
    monkeypatch.setattr(checker, "SLOW", 0.0)
    assert_gradients(square_forward, square_backward, x)
    assert "square_forward: checking every entry takes about 1 s; directions=4" in capfd.readouterr().err


def test_the_same_seed_gives_the_same_numbers(rng):
    case = square_forward, lambda dout, x: dout, rng.standard_normal(4)
    one, two, other = (check_gradients(*case, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == two and one != other


@each_mode
def test_a_direction_sees_all_entries_at_once(mode, rng):
    x = rng.standard_normal((30, 40))
    calls = []

    def forward(x):
        calls.append(x.dtype)
        return square_forward(x)

    records = check_gradients(forward, square_backward, x, mode=mode, directions=3)
    assert len(records) == 3 and all(record.passed and record.index == () for record in records)
    assert len(calls) == 2 + 3 * (1 if mode == "complex" else 2)
    wrong = square_backward_off_by(0.1, (17, 5))
    records = check_gradients(forward, wrong, x, mode=mode, directions=3, argument_names=["x"])
    assert not any(record.passed for record in records)
    assert "worst at x: expected" in records[0].message()


WRONG = [(1.0, {"mode": "forward"}, "mode must be one of complex, central, got 'forward'")]
WRONG += [(np.inf, {"argument_names": ["x"]}, "square_forward: x must be finite")]
WRONG += [(1.0, {"argument_names": ["x", "y"]}, "argument_names must be 1, one for each input, got 2")]


@pytest.mark.parametrize(("x", "options", "said"), WRONG)
def test_wrong_use_is_a_value_error_that_names_the_argument(x, options, said):
    with pytest.raises(ValueError, match=said):
        check_gradients(square_forward, square_backward, np.array([1.0, x]), **options)


ONE = np.array([0.5, -0.7, 1.3])


def square(x):
    return x * x, x


def twice(dout, x):
    return 2 * x * dout


def refuses(match, forward=square, backward=twice, x=ONE, error=AssertionError, **options):
    with pytest.raises(error, match=match):
        assert_gradients(forward, backward, x, **options)


@pytest.mark.parametrize("directions", [0, -1])
def test_no_direction_checks_nothing_and_is_refused(directions):
    refuses("directions must be at least 1, or None", error=ValueError, directions=directions)


def test_a_tiny_gradient_is_compared_as_well():
    small = [lambda x: (1e-20 * x, None), lambda dout, _: 1e-20 * dout]
    for mode in ("complex", "central"):
        assert_gradients(*small, ONE, mode=mode)
        refuses("wrong gradient", small[0], lambda dout, _: 2e-20 * dout, mode=mode)
    assert_gradients(*small, ONE, directions=2)
    refuses("wrong gradient", small[0], lambda dout, _: 2e-20 * dout, directions=2)


@pytest.mark.parametrize("forward", [lambda x: (x * np.abs(x), x), lambda x: (x * np.conj(np.sign(x.real) * x), x)])
def test_what_a_complex_step_does_not_see_is_named_with_the_other_mode(forward):
    right = lambda dout, x: 2 * np.abs(x) * dout  # noqa: E731
    assert_gradients(forward, right, ONE, mode="central")
    refuses(r"no complex step goes; use mode='central'", lambda x: (x * np.abs(x), x), right)
    with pytest.raises(AssertionError) as wrong:
        assert_gradients(lambda x: (x * np.abs(x), x), twice, ONE)
    assert "use mode" not in str(wrong.value)


def test_inputs_and_outputs_that_cannot_be_checked_are_named():
    refuses("x must be real, got complex numbers", x=ONE + 0j, error=ValueError)
    refuses("no input is an array of floats.*x of int64", x=np.arange(3), error=ValueError)
    refuses("forward gives numbers that are not finite", lambda x: (x * np.nan, x))
    refuses("forward computes in float32", lambda x: (np.float32(x) ** 2, x), mode="central")
    refuses("out must be an array, a number or a tuple of these, got list", lambda x: ([x * x], x))
    refuses("out must be an array, a number or a tuple of these, got NoneType", lambda x: (None, x))
    assert_gradients(square, twice, 0.5)  # a Python number is one of no axes


def test_a_backward_may_return_a_list():
    product = lambda x, y: (x * y, (x, y))  # noqa: E731
    assert_gradients(product, lambda dout, c: [dout * c[1], dout * c[0]], ONE, ONE + 1)
    with pytest.raises(AssertionError, match="wrong gradient with respect to y"):
        assert_gradients(product, lambda dout, c: [dout * c[1], dout * c[1]], ONE, ONE + 1)


def test_a_gradient_of_zero_passes_however_large_the_input_is():
    """What is added to all scores changes no softmax: its gradient is measured as rounding noise."""
    scores = np.random.default_rng(3).standard_normal(9)

    def forward(b):
        e = np.exp(scores + b[0] - b[0].real - scores.max())
        return e / e.sum(), None

    for size in (1.0, 1e9):
        assert_gradients(forward, lambda dout, _: np.zeros(1), np.array([size]))
        refuses("wrong gradient", forward, lambda dout, _: np.full(1, 1e-9), np.array([size]))
