"""Norms and updates of more numbers than a block has; what is refused, copied, large, not finite."""

import math
from functools import partial

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cuda import arguments
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.updates import BLOCK_ENTRIES, clipping_factor
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.clipping import clip_factor

from ..compare import adamw_update
from .compare import assert_close, cuda, in_float64, normal, on_device

RULES = {"adamw": partial(adamw_update, cuda), "lamb": cuda.lamb_update}
CONSTANTS = AdamConstants(0.8, 0.95, eps=1e-3, step=3)
ARRAYS = ("param", "grad", "m", "v")


def inputs(shape):
    """θ, gradient and moments. All but θ and the gradient are positive: v is an average of squares."""
    param, grad, *moments = normal(*[shape] * len(ARRAYS))
    return [param, grad, *(np.asarray(np.abs(x)) for x in moments)]


def test_lamb_of_more_numbers_than_a_block_has(place):
    arrays = inputs((BLOCK_ENTRIES + 3,))
    expected, given = in_float64(arrays), on_device(arrays)
    for engine, values in ((cuda, given), (ops, expected)):
        engine.lamb_update(*values, lr=0.1, decay=0.3, constants=CONSTANTS)
    assert_close(given, expected)


def test_many_parameters_in_one_launch(place):
    """More than one block for one of them, none for another; the gradient of one has gaps."""
    groups = [inputs(shape) for shape in ((3, 5), (BLOCK_ENTRIES + 3,), (0,), ())]
    options = {"lr": 0.1, "multipliers": [1.0, 2.0, 3.0, 4.0], "decays": [0.3, 0.0, 0.1, 0.2], "constants": CONSTANTS}
    expected, given = in_float64(groups), on_device(groups)
    given[0][1] = to_device(np.pad(groups[0][1].T, 2))[2:7, 2:5].T
    ops.adamw_updates(*zip(*expected, strict=True), **options)
    cuda.adamw_updates(*zip(*given, strict=True), **options)
    assert_close(given, expected)


ONES = np.ones((3, 4), np.float32)
BAD = [
    (lambda: to_device(ONES).T, r"must have the shape of param, \(3, 4\), got \(4, 3\)", ("grad", "m", "v")),
    (lambda: to_device(np.ones((3, 8), np.float32))[:, 2:6], "is updated in place and must", ("param", "m", "v")),
    (lambda: ONES, "must be in the GPU's memory, got ndarray", ARRAYS),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("bad", "said", "names"), BAD)
def test_bad_arrays_change_nothing(place, rule, bad, said, names):
    for name in names:
        arrays = {each: to_device(ONES) for each in ARRAYS} | {name: bad()}
        with pytest.raises(ValueError, match=f"{name} {said}"):
            RULES[rule](*arrays.values(), lr=0.1, decay=0.3, constants=CONSTANTS)
        assert all(np.array_equal(to_host(x).ravel(), ONES.ravel()) for x in arrays.values())


def test_a_schedule_of_the_learning_rate_copies_nothing(place, monkeypatch):
    arrays = [on_device([x]) for x in inputs((3, 5))]
    copies, copy = [], arguments.to_device
    monkeypatch.setattr(arguments, "to_device", lambda x: copies.append(x) or copy(x))
    arguments.on_device.cache_clear()
    for t in range(3):
        constants = CONSTANTS._replace(step=t + 1)
        cuda.adamw_updates(*arrays, lr=0.1 * t, multipliers=[2.0], decays=[0.3], constants=constants)
        # multipliers, decays, the factor of the gradients
        assert sum(x.dtype == np.float32 for x in copies) == 3


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("shapes", [[(3, 70), (0,), (BLOCK_ENTRIES + 3,)], []], ids=["some", "none"])
def test_clipping(place, max_norm, shapes):
    """The losses' squares are in no norm."""
    grads = normal(*shapes)
    norm, factor = cuda.clipping([to_device(x) for x in grads], [to_device(np.float32(7)), 3.0], max_norm=max_norm)
    expected = ops.clipping(grads, [], max_norm=max_norm)[0]
    assert float(norm) == pytest.approx(expected, rel=1e-13)
    assert float(factor) == pytest.approx(clip_factor(expected, max_norm), rel=1e-7)


def test_a_norm_of_more_sums_than_a_block_has_threads(place):
    sums, norm, factor = empty(303, np.float64), empty((), np.float64), empty(())
    squares = np.random.default_rng(1).random(303)
    driver().write(sums.pointer, squares)
    clipping_factor(1, sums, 300, 303, 1.0, norm, factor)
    assert float(norm) == pytest.approx(math.sqrt(squares[:300].sum()), rel=1e-13)


def test_norms_that_are_large_or_not_finite(place):
    assert cuda.squared_norms([to_device(np.full(2, 1e30, np.float32))]) == [2 * float(np.float32(1e30)) ** 2]
    one = np.ones(600, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        one[270] = bad
        there = to_device(one)
        good, got = cuda.squared_norms([there[300:], there])
        assert good == 300 and (math.isnan(got) if math.isnan(bad) else got == math.inf)
