"""The checker itself: what it lets pass, what it catches, and what it says then."""

import warnings

import numpy as np
import pytest

from tinyprune.gradcheck import assert_gradients, check_gradients
from tinyprune.ops import linear_backward, linear_forward


def square_forward(x):
    return x * x, x


def square_backward(dout, x):
    return 2 * x * dout


def convolve_forward(x, kernel):
    """An operation that is not ours: out_bt = Σ_k x_b,t+k · kernel_k, x (B, T), kernel (K,), out (B, T − K + 1)."""
    K = len(kernel)
    windows = np.stack([x[:, k : x.shape[1] - K + 1 + k] for k in range(K)], -1)
    return windows @ kernel, (windows, kernel, x.shape)


def convolve_backward(dout, cache):
    windows, kernel, shape = cache
    dx = np.zeros(shape, dout.dtype)
    for k, weight in enumerate(kernel):
        dx[:, k : k + dout.shape[1]] += dout * weight
    return dx, np.einsum("bt,btk->k", dout, windows)


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_an_operation_of_somebody_else(mode, rng):
    x, kernel = rng.standard_normal((2, 7)), rng.standard_normal(3)
    assert_gradients(convolve_forward, convolve_backward, x, kernel, mode=mode)

    def flipped(dout, cache):
        windows, kernel, shape = cache
        return convolve_backward(dout, (windows, kernel[::-1], shape))

    with pytest.raises(AssertionError, match="convolve_forward: wrong gradient with respect to x0"):
        assert_gradients(convolve_forward, flipped, x, kernel, mode=mode)


# What a failure says.


def test_a_failure_names_function_argument_worst_entry_expected_and_got(rng):
    x = rng.standard_normal((2, 3))

    def one_entry_wrong(dout, x):
        dx = 2 * x * dout
        dx[0, 1] += 1e-3
        dx[1, 2] += 7.0
        return dx

    (record,) = check_gradients(square_forward, one_entry_wrong, x, argument_names=["activations"])
    assert not record.passed and record.index == (1, 2)
    assert record.got - record.expected == pytest.approx(7.0)
    with pytest.raises(AssertionError) as failure:
        assert_gradients(square_forward, one_entry_wrong, x, argument_names=["activations"])
    message = str(failure.value)
    assert "square_forward: wrong gradient with respect to activations" in message
    assert "worst at activations[1, 2]" in message
    assert f"expected {record.expected:+.12e}, got {record.got:+.12e}" in message
    assert f"relative error {record.relative_error:.2e} (allowed 1e-12, complex mode)" in message


def test_only_the_wrong_gradients_are_reported(rng):
    x, W, b = rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), rng.standard_normal(2)

    def wrong_bias(dout, cache):
        dx, dW, db = linear_backward(dout, cache)
        return dx, dW, -db

    with pytest.raises(AssertionError) as failure:
        assert_gradients(linear_forward, wrong_bias, x, W, b, name="my linear", argument_names=["x", "W", "b"])
    assert "my linear: wrong gradient with respect to b" in str(failure.value)
    assert str(failure.value).count("wrong gradient") == 1


def test_nan_is_the_worst_entry(rng):
    def not_a_number(dout, x):
        dx = 2 * x * dout
        dx[1] = np.nan
        return dx

    (record,) = check_gradients(square_forward, not_a_number, rng.standard_normal(3))
    assert not record.passed and record.index == (1,) and np.isnan(record.got)


# What it catches beside wrong numbers.


def test_a_forward_that_casts_to_float(rng):
    def cast_forward(x):
        return x.astype(np.float64) ** 2, x

    with warnings.catch_warnings():
        # Outside of a test run this is only a warning, easily overlooked.
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        with pytest.raises(AssertionError, match="cast_forward: forward turned complex inputs into a real output"):
            check_gradients(cast_forward, square_backward, rng.standard_normal(3))
        assert_gradients(cast_forward, square_backward, rng.standard_normal(3), mode="central")


def test_a_backward_that_modifies_dout(rng):
    def in_place(dout, x):
        dout *= 2 * x
        return dout

    with pytest.raises(AssertionError, match="square_forward: backward must not modify dout"):
        check_gradients(square_forward, in_place, rng.standard_normal(3))


def test_a_backward_that_modifies_its_cache(rng):
    def in_place(dout, x):
        x *= 2
        return x * dout

    with pytest.raises(AssertionError, match="square_forward: backward must not modify its cache"):
        check_gradients(square_forward, in_place, rng.standard_normal(3))


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
    ids=["too few", "a single one", "too many", "transposed", "an axis too many", "None"],
)
def test_gradients_of_wrong_number_or_shape(keep, complaint, rng):
    inputs = {"x": rng.standard_normal((4, 3)), "W": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}
    with pytest.raises(AssertionError, match=complaint):
        check_gradients(
            linear_forward,
            lambda dout, cache: keep(*linear_backward(dout, cache)),
            *inputs.values(),
            argument_names=list(inputs),
        )


def test_the_limits_of_both_modes(rng):
    """A relative error of 1e-10 is a bug in complex mode, and within the noise of central differences."""

    def slightly_wrong(factor):
        return lambda dout, x: square_backward(dout, x) * (1 + factor)

    x = rng.standard_normal(5)
    assert not check_gradients(square_forward, slightly_wrong(1e-10), x)[0].passed
    assert check_gradients(square_forward, slightly_wrong(1e-10), x, mode="central")[0].passed
    assert not check_gradients(square_forward, slightly_wrong(1e-5), x, mode="central")[0].passed


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_a_gradient_that_is_truly_zero_may_be_rounding_noise(mode, rng):
    """A bias on all scores of a softmax changes nothing: its gradient is a sum that cancels to about 1e-17."""

    def forward(scores, bias):
        e = np.exp(scores + bias)
        p = e / e.sum()
        return p, p

    def backward(dout, p):
        ds = p * (dout - (dout * p).sum())
        return ds, ds.sum(keepdims=True)

    records = check_gradients(forward, backward, rng.standard_normal(9), np.array([0.3]), mode=mode)
    assert all(record.passed for record in records)


# What can be checked.


def test_none_is_passed_on_and_needs_no_measurement(rng):
    records = check_gradients(
        linear_forward,
        linear_backward,
        rng.standard_normal((4, 3)),
        rng.standard_normal((3, 2)),
        None,
        argument_names=["x", "W", "b"],
    )
    assert [record.argument for record in records] == ["x", "W"]
    assert all(record.passed for record in records)


def weighted_sum_forward(parts, weights):
    return sum(w * x.sum() for w, x in zip(weights, parts, strict=True)), (parts, weights)


def weighted_sum_backward(dout, cache):
    parts, weights = cache
    return (
        [np.full_like(x, dout * w) for w, x in zip(weights, parts, strict=True)],
        [np.asarray(dout * x.sum()) for x in parts],
    )


def test_lists_of_arrays_each_have_a_record(rng):
    parts = [rng.standard_normal((2, 3)), rng.standard_normal(4)]
    weights = [np.array(0.7), np.array(-2.0)]
    options = {"argument_names": ["parts", "weights"]}
    records = check_gradients(weighted_sum_forward, weighted_sum_backward, parts, weights, **options)
    assert [record.argument for record in records] == ["parts[0]", "parts[1]", "weights[0]", "weights[1]"]
    assert all(record.passed for record in records)

    def second_forgotten(dout, cache):
        (first, second), dweights = weighted_sum_backward(dout, cache)
        return [first, 0 * second], dweights

    records = check_gradients(weighted_sum_forward, second_forgotten, parts, weights, **options)
    assert [record.argument for record in records if not record.passed] == ["parts[1]"]

    def second_missing(dout, cache):
        dparts, dweights = weighted_sum_backward(dout, cache)
        return dparts[:1], dweights

    with pytest.raises(AssertionError, match="2 gradients expected for parts, got 1"):
        check_gradients(weighted_sum_forward, second_missing, parts, weights, **options)


def test_several_outputs_have_a_dout_each(rng):
    def split_forward(x):
        return (x[:2], x[2:] ** 2), x

    def split_backward(dout, x):
        one, other = dout
        return np.concatenate([one, 2 * x[2:] * other])

    assert_gradients(split_forward, split_backward, rng.standard_normal(5))
    with pytest.raises(AssertionError, match="wrong gradient with respect to x0"):
        assert_gradients(split_forward, lambda dout, x: np.concatenate(dout), rng.standard_normal(5))


def test_integers_and_options_are_passed_on_without_a_gradient(rng):
    def pick_forward(x, ids, name):
        assert ids.dtype == np.int64 and name == "rows"
        return x[ids], (x.shape, ids)

    def pick_backward(dout, cache):
        shape, ids = cache
        dx = np.zeros(shape)
        np.add.at(dx, ids, dout)
        return dx

    x, ids = rng.standard_normal((4, 3)), np.array([2, 0, 2])
    assert_gradients(pick_forward, pick_backward, x, ids, "rows")


def test_float32_is_checked_in_float64_and_inputs_stay_as_they_are(rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    before = x.copy()
    seen = set()

    def forward(x):
        seen.add(x.dtype)
        return square_forward(x)

    assert_gradients(forward, square_backward, x)
    assert seen == {np.dtype(np.float64), np.dtype(np.complex128)}
    assert x.dtype == np.float32 and np.array_equal(x, before)


def test_an_empty_array_passes():
    (record,) = check_gradients(square_forward, square_backward, np.zeros((0, 3)))
    assert record.passed and record.relative_error == 0


def test_the_same_seed_gives_the_same_numbers(rng):
    x = rng.standard_normal(4)

    def wrong(dout, x):
        return dout

    one, two = (check_gradients(square_forward, wrong, x, rng=np.random.default_rng(1)) for _ in range(2))
    other = check_gradients(square_forward, wrong, x, rng=np.random.default_rng(2))
    assert one == two and one != other


# Directions instead of entries.


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_a_direction_sees_all_entries_at_once(mode, rng):
    x = rng.standard_normal((30, 40))
    calls = []

    def forward(x):
        calls.append(x.dtype)
        return square_forward(x)

    def one_of_many_wrong(dout, x):
        dx = square_backward(dout, x)
        dx[17, 5] += 0.1
        return dx

    records = check_gradients(forward, square_backward, x, mode=mode, directions=3)
    assert len(records) == 3 and all(record.passed and record.index == () for record in records)
    assert len(calls) == 1 + 3 * (1 if mode == "complex" else 2)
    records = check_gradients(forward, one_of_many_wrong, x, mode=mode, directions=3, argument_names=["x"])
    assert not any(record.passed for record in records)
    assert "worst at x: expected" in records[0].message()


# Wrong use.


def test_wrong_use_is_a_value_error_that_names_the_argument(rng):
    x = rng.standard_normal(3)
    with pytest.raises(ValueError, match="mode must be one of complex, central, got 'forward'"):
        check_gradients(square_forward, square_backward, x, mode="forward")
    with pytest.raises(ValueError, match="square_forward: x must be finite"):
        check_gradients(square_forward, square_backward, np.array([1.0, np.inf]), argument_names=["x"])


def test_a_forward_that_modifies_its_input_is_noticed():
    def forward(x):
        x *= 2
        return x, None

    with pytest.raises(AssertionError, match="forward must not modify x0"):
        check_gradients(forward, lambda dout, cache: 2 * dout, np.ones(3))


def test_a_forward_that_modifies_its_token_numbers_is_noticed():
    def forward(ids, x):
        ids += 1
        return x[ids], None

    with pytest.raises(AssertionError, match="forward must not modify x0"):
        check_gradients(forward, lambda dout, cache: dout, np.array([0, 1]), np.ones(3))


def test_a_gradient_for_an_input_that_is_none_must_be_none():
    def forward(x, b):
        return 2 * x, None

    with pytest.raises(AssertionError, match="the gradient of x1, which is None, must be None"):
        check_gradients(forward, lambda dout, cache: (2 * dout, dout), np.ones(3), None)


def test_argument_names_must_be_one_for_each_input():
    with pytest.raises(ValueError, match="argument_names must be 1, one for each input, got 2"):
        check_gradients(lambda x: (2 * x, None), lambda dout, cache: 2 * dout, np.ones(3), argument_names=["x", "y"])
