"""What every operation promises: types are kept, arguments are not changed, and the same in gives the same out."""

import copy

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.gradcheck import Case, operation_cases

GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}


def layerwise_error_case() -> Case:
    """Like the catalogue's, with the constants o, Wo and bo in the type of the gate."""
    rng = np.random.default_rng(5)
    o, Wo, bo = rng.standard_normal((2, 4, 3, 5)), rng.standard_normal((15, 6)), rng.standard_normal(6)

    def forward(gate):
        real = gate.real.dtype
        return ops.layerwise_error_forward(gate, o.astype(real), Wo.astype(real), bo.astype(real), 1.5)

    return Case("layerwise_error", forward, ops.layerwise_error_backward, {"gate": np.array([0.7, 0.0, 1.0])})


def hard_concrete_case(hard: bool) -> Case:
    """Like the catalogue's, with noise in the type of log_alpha."""
    noise = np.array([0.2, 0.45, 0.5, 0.7])

    def forward(log_alpha):
        return ops.hard_concrete_forward(log_alpha, noise.astype(log_alpha.real.dtype), **GATE, hard=hard)

    return Case(
        f"hard_concrete ({hard=})", forward, ops.hard_concrete_backward, {"log_alpha": np.linspace(-1.5, 1.9, 4)}
    )


def top_k_case(hard: bool) -> Case:
    """Like the catalogue's, with noise in the type of log_alpha."""
    noise = np.array([0.2, 0.45, 0.9, 0.3])

    def forward(log_alpha):
        return ops.top_k_forward(log_alpha, noise.astype(log_alpha.real.dtype), k=2, tau=0.7, hard=hard)

    return Case(f"top_k ({hard=})", forward, ops.top_k_backward, {"log_alpha": np.linspace(-1.5, 1.9, 4)})


CASES = [case for case in operation_cases() if case.operation != "layerwise_error" and "training" not in case.operation]
CASES += [layerwise_error_case(), hard_concrete_case(hard=True), hard_concrete_case(hard=False)]
CASES += [top_k_case(hard=True), top_k_case(hard=False)]
TYPES = [np.float32, np.float64, np.complex128]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
each_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)


def converted(case: Case, dtype: type) -> list:
    """The inputs of a case, arrays of floats in `dtype`."""

    def convert(value):
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value.astype(dtype) if value is not None and value.dtype == np.float64 else value

    return [convert(value) for value in case.inputs.values()]


def draw_dout(out, dtype: type):
    dout = np.random.default_rng(1).standard_normal(np.shape(out))
    return dtype(1.5) if np.ndim(out) == 0 else dout.astype(dtype)


def leaves(value) -> list:
    """All that is in a nest of tuples, lists and the like."""
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def assert_same(one, two) -> None:
    for a, b in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@each_type
@each_case
def test_outputs_and_gradients_keep_shape_and_type(case, dtype):
    inputs = converted(case, dtype)
    out, cache = case.forward(*inputs)
    assert out.dtype == dtype
    gradients = case.backward(draw_dout(out, dtype), cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    wanted = [x for x in inputs if x is None or np.issubdtype(leaves(x)[0].dtype, np.inexact)]
    for x, gradient in zip(leaves(wanted), leaves(gradients), strict=True):
        if x is None:
            assert gradient is None
        else:
            assert gradient.shape == x.shape and gradient.dtype == dtype


@each_type
@each_case
def test_inputs_dout_and_cache_stay_as_they_are(case, dtype):
    inputs = converted(case, dtype)
    inputs_before = copy.deepcopy(inputs)
    out, cache = case.forward(*inputs)
    out_before, cache_before = copy.deepcopy(out), copy.deepcopy(cache)
    assert_same(inputs, inputs_before)
    dout = draw_dout(out, dtype)
    dout_before = copy.deepcopy(dout)
    first = copy.deepcopy(case.backward(dout, cache))
    assert_same([inputs, dout, out, cache], [inputs_before, dout_before, out_before, cache_before])
    assert_same(case.backward(dout, cache), first)


@each_case
def test_the_same_inputs_give_the_same_output(case):
    inputs = converted(case, np.float64)
    assert_same(case.forward(*inputs)[0], case.forward(*inputs)[0])


@each_case
def test_float32_and_complex_agree_with_float64(case):
    (out32, cache32), (out64, cache64), (complex_out, _) = (case.forward(*converted(case, t)) for t in TYPES)
    np.testing.assert_allclose(out32, out64, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(complex_out, out64, rtol=1e-13, atol=1e-14)
    gradients32 = leaves(case.backward(draw_dout(out32, np.float32), cache32))
    gradients64 = leaves(case.backward(draw_dout(out64, np.float64), cache64))
    for a, b in zip(gradients32, gradients64, strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
