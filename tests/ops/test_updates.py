"""The optimizers' updates: in place, in the parameter's type, the gradient read and scaled but not touched.

That the rules are right is seen in tests/training/test_optimizers.py, over several steps and against PyTorch.
"""

import numpy as np
import pytest

from tinyprune.ops import adamw_update, lamb_update, sgd_update

MOMENTS = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "step": 3}
UPDATES = {
    "sgd": (sgd_update, 1, {"lr": 0.1, "decay": 0.3, "beta1": 0.8}),
    "adamw": (adamw_update, 2, {"lr": 0.1, "decay": 0.3, **MOMENTS}),
    "lamb": (lamb_update, 2, {"lr": 0.1, "decay": 0.3, **MOMENTS}),
}
each_rule = pytest.mark.parametrize("rule", UPDATES)


def example(rule: str, dtype: type = np.float64) -> tuple:
    """The operation; θ, gradient and moments; and its constants."""
    update, moments, constants = UPDATES[rule]
    rng = np.random.default_rng(4)
    arrays = [rng.uniform(0.5, 1.5, (3, 4)).astype(dtype) for _ in range(2 + moments)]
    return update, arrays, constants


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_rule
def test_all_but_the_gradient_is_moved_in_place_and_keeps_its_type(rule, dtype):
    update, arrays, constants = example(rule, dtype)
    before = [x.copy() for x in arrays]
    assert update(*arrays, **constants) is None
    assert [x.dtype for x in arrays] == [dtype] * len(arrays)
    assert [bool((x == b).all()) for x, b in zip(arrays, before, strict=True)] == [i == 1 for i in range(len(arrays))]


@each_rule
def test_float32_arithmetic_stays_in_float32(rule):
    """Python floats, and with them every intermediate result: only then do float32 and float64 part as they should."""
    update, arrays, constants = example(rule, np.float32)
    wide = [x.astype(np.float64) for x in arrays]
    update(*arrays, **constants, grad_scale=0.7)
    update(*wide, **constants, grad_scale=0.7)
    np.testing.assert_allclose(arrays[0], wide[0], rtol=1e-6)
    assert (arrays[0] != wide[0]).any()


@each_rule
def test_the_gradient_is_scaled_as_it_is_read(rule):
    update, (param, grad, *moments), constants = example(rule)
    expected = [param.copy(), *(x.copy() for x in moments)]
    update(expected[0], 0.3 * grad, *expected[1:], **constants)
    update(param, grad, *moments, **constants, grad_scale=0.3)
    for x, e in zip((param, *moments), expected, strict=True):
        np.testing.assert_array_equal(x, e)


@each_rule
def test_a_gradient_with_gaps_in_memory(rule):
    update, arrays, constants = example(rule)
    expected = [x.copy() for x in arrays]
    arrays[1] = np.asfortranarray(arrays[1])
    update(*arrays, **constants)
    update(*expected, **constants)
    for x, e in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(x, e)


@each_rule
def test_a_tensor_without_entries(rule):
    update, arrays, constants = example(rule)
    update(*(x[:, :0] for x in arrays), **constants)


@each_rule
def test_nothing_is_broadcast(rule):
    update, arrays, constants = example(rule)
    for i in range(1, len(arrays)):
        wrong = [x[0] if i == j else x for j, x in enumerate(arrays)]
        with pytest.raises(ValueError, match=r"must have the shape of param, \(3, 4\), got \(4,\)"):
            update(*wrong, **constants)
