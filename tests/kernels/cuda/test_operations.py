"""What operations promise on a GPU, beside what tests/kernels/test_contract.py asks of every backend."""

import inspect

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.gradcheck.catalogue import no_backward
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import to_device, to_host

from ..compare import assert_close, assert_same_bits, mapped
from ..test_contract import HOST, NAMES, cases, changed, draw_dout, float_places, of_dtype, run, textbook

each_case = pytest.mark.parametrize("name", [name for name in NAMES if name not in HOST])


def inputs_of(name, convert=lambda x: x):
    return mapped(convert, of_dtype(cases("cuda")[name].inputs, np.float32))


def constants_of(name):
    """The arrays among them."""
    found = {key: x for key, x in cases("cuda")[name].constants.items() if isinstance(x, np.ndarray)}
    return of_dtype(found, np.float32)


def on_device(value):
    """Floats in the GPU's memory; ids and targets stay where they are."""
    return mapped(lambda x: x if x.dtype == np.int64 else to_device(x), value)


def view_of(x):
    """The same numbers in the GPU's memory, with NaN between their rows, and not aligned to 16 bytes."""
    if x.dtype != np.float32 or not x.ndim:
        return x
    wider = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, np.float32)
    wider[..., 1:-2] = x
    return to_device(wider)[(*(x.ndim - 1) * (slice(None),), slice(1, -2))]


@pytest.mark.slow
@each_case
def test_views_that_are_not_aligned(place, name):
    case, expected = cases("cuda")[name], textbook(name)
    dout = mapped(view_of, of_dtype(draw_dout(expected[0], np.float64), np.float32))
    constants = mapped(view_of, constants_of(name))
    assert_close(run("cuda", case, inputs_of(name, view_of), np.float32, dout, **constants), expected, np.float32)


@pytest.mark.parametrize("name", ["l0", "layerwise_error", "cross_entropy", "adaptive_softmax"])
def test_a_loss_has_its_gradient_in_either_memory(place, name):
    case = cases("cuda")[name]
    _, cache = case.forward(*on_device(inputs_of(name)).values())
    found = [case.backward(x, cache) for x in (0.7, to_device(np.array(0.7, np.float32)))]
    assert_same_bits(*mapped(to_host, found))


# The catalogue copies arguments of these, or the textbook computes them, wherever they lie.
ANYWHERE = {"adamw_updates", "attention_step", "distillation", "lamb_update"}
UNCHECKED = {"adaptive_log_probabilities", "distillation"}  # the first as in the textbook


@each_case
def test_arrays_of_another_memory_or_type(place, name):
    """Each argument by itself is refused."""
    case, inputs, operation = cases("cuda")[name], inputs_of(name), name.split(" (")[0]
    places = float_places(inputs) if operation not in UNCHECKED else []
    for one in places:
        wrong = on_device(changed(inputs, one, lambda x: x.astype(np.int32)))
        if len(places) > 1 or not constants_of(name):  # constants take the type of an input
            with pytest.raises(ValueError, match="must be float32 for the cuda backend, got int32"):
                case.forward(*wrong.values())
        if operation not in ANYWHERE:
            wrong = changed(on_device(inputs), one, to_host)
            with pytest.raises(ValueError, match="must be in the GPU's memory, got ndarray"):
                case.forward(*wrong.values())


@each_case
def test_gradients_of_another_shape(place, name):
    case = cases("cuda")[name]
    if case.backward is no_backward or name.split(" (")[0] in ("context", "distillation", "adaptive_softmax"):
        return  # a view of any, or a number
    out, cache = case.forward(*on_device(inputs_of(name)).values())
    other = to_device(np.ones((2, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"must have shape \(.* like the output, got \(2, 1, 1, 1\)"):
        case.backward((*out[:-1], other) if isinstance(out, tuple) else other, cache)


# A few numbers for each head, or nothing but noise: drawn and looked at in main memory.
ON_HOST = {"draw_gumbel", "draw_noise", "p_open", "sigmoid"}
LEFT = ON_HOST | {"context_backward"}  # of views it makes a view, wherever they lie


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
    of_layers = {"feedforward", "head_networks", "linear", "projections"}
    assert different == of_vocabulary | of_layers
