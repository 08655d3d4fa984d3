"""The optimizers' updates compiled, each against the textbook's: to the bit in float32 where there are no sums;
threads, gradients with gaps, NaN, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given

from tinyprune import ops
from tinyprune.kernels.cpu.adamw import adamw_update
from tinyprune.kernels.cpu.lamb import lamb_update
from tinyprune.kernels.cpu.sgd import sgd_update

from .compare import (
    LARGE,
    assert_close,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    leading,
    seeds,
    widths,
)

SGD = {"lr": 0.1, "decay": 0.3, "beta1": 0.8}
ADAM = {**SGD, "beta2": 0.95, "eps": 1e-3}
RULES = {
    "sgd": (sgd_update, ops.sgd_update, ("param", "grad", "momentum"), SGD),
    "adamw": (adamw_update, ops.adamw_update, ("param", "grad", "m", "v"), ADAM),
    "lamb": (lamb_update, ops.lamb_update, ("param", "grad", "m", "v"), ADAM),
}
each_rule = pytest.mark.parametrize("rule", RULES)


def inputs(rule: str, shape: tuple[int, ...], dtype: type = np.float64, seed: int = 0) -> list[np.ndarray]:
    """θ, gradient and moments. All but θ and the gradient are positive: v is an average of squares."""
    param, grad, *moments = draw(seed, dtype, *[shape] * len(RULES[rule][2]))
    return [param, grad, *map(np.abs, moments)]


def step(rule: str, arrays: list[np.ndarray], textbook: bool = False, t: int = 3, grad_scale: float = 0.7) -> None:
    """One step, compiled or as in the textbook."""
    ours, theirs, _, options = RULES[rule]
    counted = {} if rule == "sgd" else {"step": t}
    (theirs if textbook else ours)(*arrays, **options, **counted, grad_scale=grad_scale)


@each_rule
@each_dtype
@few
@given(first=leading, D=widths, seed=seeds)
@example(first=LARGE, D=37, seed=0)
def test_like_the_textbook(rule, dtype, first, D, seed):
    arrays = inputs(rule, (*first, D), dtype, seed)
    expected = [in_float64(a) for a in arrays]
    gradient = arrays[1].copy()
    for t in (1, 2, 100):
        step(rule, arrays, t=t)
        step(rule, expected, textbook=True, t=t)
    assert_close(tuple(arrays), tuple(expected), dtype)
    assert_same_bits(arrays[1], gradient)


@each_rule
def test_the_same_bits_in_float32(rule):
    """Every entry is computed in float32, rounded after each operation. (LAMB's norms are summed in another order.)"""
    arrays = inputs(rule, (1001,), np.float32)
    expected = [a.copy() for a in arrays]
    step(rule, arrays)
    step(rule, expected, textbook=True)
    assert_same_bits(tuple(arrays[1:]), tuple(expected[1:]))
    np.testing.assert_allclose(arrays[0], expected[0], rtol=0, atol=1e-6 if rule == "lamb" else 0)


@each_rule
def test_the_gradient_is_not_scaled_unless_asked(rule):
    arrays = inputs(rule, (50,))
    expected = [a.copy() for a in arrays]
    step(rule, expected, grad_scale=1.0)
    ours, _, _, options = RULES[rule]
    ours(*arrays, **options, **({} if rule == "sgd" else {"step": 3}))
    assert_same_bits(tuple(arrays), tuple(expected))


@pytest.mark.parametrize(("start", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_lamb_with_a_norm_of_zero(start, gradient):
    """A tensor of zeros leaves zero; one without a direction stays where it is."""
    param, grad, m, v = np.full(5, start), np.full(5, gradient), np.zeros(5), np.zeros(5)
    lamb_update(param, grad, m, v, **ADAM | {"decay": 0.0, "eps": 1e-12}, step=1)
    np.testing.assert_allclose(param, start - ADAM["lr"] * gradient)


@each_rule
def test_threads_do_not_matter(rule):
    def compute() -> tuple:
        arrays = inputs(rule, (70_001,), np.float32)
        step(rule, arrays)
        return tuple(arrays)

    assert_threads_do_not_matter(compute)


@each_rule
@pytest.mark.parametrize("arrange", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2]], ids=["F", "gaps"])
def test_gradients_of_any_arrangement(rule, arrange):
    param, grad, *moments = inputs(rule, (6, 8))
    expected = [a.copy() for a in (param, grad, *moments)]
    step(rule, [param, arrange(grad), *moments])
    step(rule, expected)
    assert_same_bits((param, *moments), (expected[0], *expected[2:]))


@each_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_as_in_the_textbook(rule, bad):
    arrays = inputs(rule, (40,))
    arrays[1][5] = bad
    expected = [a.copy() for a in arrays]
    step(rule, arrays)
    with np.errstate(all="ignore"):
        step(rule, expected, textbook=True)
    for got, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def frozen(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


ONES = np.ones((3, 4))
UNLIKE_PARAM = [
    (ONES.T, r"must have the shape of param, \(3, 4\), got \(4, 3\)"),
    (ONES.astype(np.float32), "must have the dtype of param, float64, got float32"),
]
NOT_TO_BE_WRITTEN = [
    (bad, "is updated in place and must be writeable and C-contiguous")
    for bad in (np.ones((3, 8))[:, ::2], np.asfortranarray(ONES), frozen(ONES.copy()))
]
BAD_ARRAYS = [
    (rule, name, bad, message)
    for rule, (*_, names, _) in RULES.items()
    for name in names
    for bad, message in (UNLIKE_PARAM if name != "param" else []) + (NOT_TO_BE_WRITTEN if name != "grad" else [])
]


@pytest.mark.parametrize(("rule", "name", "bad", "message"), BAD_ARRAYS)
def test_bad_arrays_change_nothing(rule, name, bad, message):
    arrays = {each: ONES.copy() for each in RULES[rule][2]} | {name: bad}
    copies = [a.copy() for a in arrays.values()]
    with pytest.raises(ValueError, match=f"{name} {message}"):
        step(rule, list(arrays.values()))
    assert_same_bits(tuple(arrays.values()), tuple(copies))


@each_rule
def test_bad_dtypes(rule):
    with pytest.raises(ValueError, match="param must be float32 or float64 for a compiled kernel, got float16"):
        step(rule, inputs(rule, (3,), np.float16))
