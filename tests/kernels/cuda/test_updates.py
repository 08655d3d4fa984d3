"""Norms, and the optimizers' updates, against the textbook's in float64; gradients with gaps, norms of 0, NaN."""

import math
from functools import partial

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.many import EACH
from tinyprune.kernels.cuda.updates import adamw
from tinyprune.kernels.cuda.updates.lamb import rate_of
from tinyprune.kernels.cuda.updates.norm import limit
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.clipping import clip_factor

from ..compare import adamw_update
from .compare import assert_close, cuda, in_float64, normal, on_device

OPTIONS = {"lr": 0.1, "decay": 0.3}
RULES = {
    "adamw": (partial(adamw_update, cuda), partial(adamw_update, ops)),
    "lamb": (cuda.lamb_update, ops.lamb_update),
}
ARRAYS = ("param", "grad", "m", "v")
each_rule = pytest.mark.parametrize("rule", RULES)


def inputs(shape):
    """θ, gradient and moments. All but θ and the gradient are positive: v is an average of squares."""
    param, grad, *moments = normal(*[shape] * len(ARRAYS))
    return [param, grad, *(np.asarray(np.abs(x)) for x in moments)]


def step(rule, arrays, textbook=False):
    RULES[rule][textbook](*arrays, **OPTIONS, constants=AdamConstants(0.8, 0.95, 1e-3, 3, 0.7))


@each_rule
@pytest.mark.parametrize("shape", [(), (EACH + 3,)])
def test_one_number_and_more_than_a_block_has(place, rule, shape):
    arrays = inputs(shape)
    expected, given = in_float64(arrays), on_device(arrays)
    step(rule, given)
    step(rule, expected, textbook=True)
    assert_close(given, expected)


def test_lambs_rate_from_more_sums_than_a_block_has_threads(place):
    """As of a tensor that is more than 256 blocks large."""
    of_param, of_d = np.random.default_rng(1).random((2, 300))
    sums, rate = empty(600, np.float64), empty(())
    sums.lease.write(0, np.concatenate([of_param, of_d]))
    rate_of(1, sums, 300, 0.3, rate)
    assert_close(rate, 0.3 * np.sqrt(of_param.sum() / of_d.sum()))


@each_rule
def test_gradients_with_gaps(place, rule):
    param, grad, *moments = inputs((6, 8))
    given, expected = (on_device([param, *moments]) for _ in range(2))
    wide = to_device(np.pad(grad.T, ((1, 2), (0, 3))))
    step(rule, [given[0], wide[1:9, :6].T, *given[1:]])
    step(rule, [expected[0], to_device(grad), *expected[1:]])
    for a, b in zip(given, expected, strict=True):
        assert np.array_equal(to_host(a), to_host(b))


ONES = np.ones((3, 4), np.float32)
BAD = [
    (lambda: to_device(ONES).T, r"must have the shape of param, \(3, 4\), got \(4, 3\)", ("grad", "m", "v")),
    (lambda: to_device(np.ones((3, 8), np.float32))[:, 2:6], "is updated in place and must", ("param", "m", "v")),
    (lambda: ONES, "must be in the GPU's memory, got ndarray", ARRAYS),
]


@each_rule
@pytest.mark.parametrize(("bad", "said", "names"), BAD)
def test_bad_arrays_change_nothing(place, rule, bad, said, names):
    for name in names:
        arrays = {each: to_device(ONES) for each in ARRAYS} | {name: bad()}
        with pytest.raises(ValueError, match=f"{name} {said}"):
            step(rule, list(arrays.values()))
        assert all(np.array_equal(to_host(x).ravel(), ONES.ravel()) for x in arrays.values())


def test_many_parameters_in_one_launch(place):
    """More than one block for one of them, none for another."""
    shapes = [(3, 5), (EACH + 3,), (0,), ()]
    groups = [inputs(shape) for shape in shapes]
    constants = AdamConstants(0.8, 0.95, eps=1e-3, step=3)
    options = {"lr": 0.1, "multipliers": [1.0, 2.0, 3.0, 4.0], "decays": [0.3, 0.0, 0.1, 0.2], "constants": constants}
    expected, given = in_float64(groups), on_device(groups)
    ops.adamw_updates(*zip(*expected, strict=True), **options)
    cuda.adamw_updates(*zip(*given, strict=True), **options)
    assert_close(given, expected)
    param, grad, _, v = given[0]
    one = {"multipliers": [1.0], "decays": [0.1]}
    with pytest.raises(ValueError, match=r"m must have the shape of param, \(3, 5\), got \(\)"):
        cuda.adamw_updates([param], [grad], [given[3][2]], [v], **options | one)


def test_a_schedule_of_the_learning_rate_copies_nothing(place, monkeypatch):
    arrays = [on_device([x]) for x in inputs((3, 5))]
    copies, copy = [], adamw.to_device
    monkeypatch.setattr(adamw, "to_device", lambda x: copies.append(x) or copy(x))
    adamw.numbers_of.cache_clear()
    for t in range(3):
        constants = AdamConstants(0.8, 0.95, eps=1e-3, step=t + 1)
        cuda.adamw_updates(*arrays, lr=0.1 * t, multipliers=[2.0], decays=[0.3], constants=constants)
        assert len(copies) == 3  # multipliers, decays, the factor of the gradients


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("shapes", [[(3, 70), (0,), (EACH + 3,)], [(300, EACH)], []], ids=["some", "many", "none"])
def test_clipping(place, max_norm, shapes):
    """More blocks' sums than a block has threads; the losses' squares are in no norm."""
    if (300, EACH) in shapes and place != "gpu":  # the sums alone
        sums, norm, factor = empty(303, np.float64), empty((), np.float64), empty(())
        squares = np.random.default_rng(1).random(303)
        sums.lease.write(0, squares)
        limit(1, sums, 300, 303, max_norm, norm, factor)
        expected = np.sqrt(squares[:300].sum())
    else:
        grads = normal(*shapes)
        norm, factor = cuda.clipping([to_device(x) for x in grads], [to_device(np.float32(7)), 3.0], max_norm=max_norm)
        expected = ops.clipping(grads, [], max_norm=max_norm)[0]
    assert float(norm) == pytest.approx(expected, rel=1e-13)
    assert float(factor) == pytest.approx(clip_factor(expected, max_norm), rel=1e-7)


@pytest.mark.parametrize("shape", [(), (0,), (257,), (EACH,), (2 * EACH + 3,)], ids=str)
def test_squared_norms(place, shape):
    (x,) = normal(shape)
    (got,) = cuda.squared_norms([to_device(x)])
    assert isinstance(got, float)
    assert got == pytest.approx(ops.squared_norms([x])[0], rel=1e-13)


def test_norms_that_are_large_or_not_finite(place):
    assert cuda.squared_norms([to_device(np.full(2, 1e30, np.float32))]) == [2 * float(np.float32(1e30)) ** 2]
    one = np.ones(300, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        one[270] = bad
        good, got = cuda.squared_norms([to_device(one[:270]), to_device(one)])
        assert good == 270 and (math.isnan(got) if math.isnan(bad) else got == math.inf)
