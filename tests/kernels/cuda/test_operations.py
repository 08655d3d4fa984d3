"""What operations promise on a GPU, beside what tests/kernels/test_contract.py asks of every backend."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.engine import Cuda, CudaTF32
from tinyprune.ops.engine import Engine

from ..compare import assert_close, assert_same_bits, leaves, mapped
from ..test_contract import (
    HOST,
    IN_MAIN_MEMORY,
    NAMES,
    assert_same_outcome,
    cases,
    changed,
    draw_dout,
    float_places,
    of_dtype,
    reshaped,
    run,
    textbook,
)

each_case = pytest.mark.parametrize("name", [name for name in NAMES if name not in HOST])


def inputs_of(name):
    return of_dtype(cases("cuda")[name].inputs, np.float32)


def constants_of(name):
    """The arrays among them."""
    found = {key: x for key, x in cases("cuda")[name].constants.items() if isinstance(x, np.ndarray)}
    return of_dtype(found, np.float32)


def on_device(inputs, move=to_device):
    """Moved to the GPU's memory, but for those that stay where they are."""
    return {name: x if name in IN_MAIN_MEMORY else mapped(move, x) for name, x in inputs.items()}


def on_device_in_order(inputs, given):
    """Other values of these inputs, in float32 and where the operation expects them."""
    return on_device(of_dtype(dict(zip(inputs, given, strict=True)), np.float32)).values()


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
    constants = on_device(constants_of(name), view_of)
    assert_close(
        run("cuda", case, on_device(inputs_of(name), view_of), np.float32, dout, **constants), expected, np.float32
    )


def test_a_loss_has_its_gradient_in_either_memory(place):
    case = cases("cuda")["cross_entropy"]
    _, cache = case.forward(*on_device(inputs_of("cross_entropy")).values())
    found = [case.backward(x, cache) for x in (0.7, to_device(np.array(0.7, np.float32)))]
    assert_same_bits(*mapped(to_host, found))


# The catalogue copies arguments of these, or nothing is computed from them, or by NumPy, wherever they lie.
ANYWHERE = {"adamw_updates", "add_rows", "attention_step", "context", "distillation", "lamb_update", "matmul (onto)"}
UNCHECKED = {"adaptive_embedding (last cluster absent)", "adaptive_softmax (last cluster absent)"}
UNCHECKED |= {"adaptive_log_probabilities", "context (no memory)", "distillation"}  # as in the textbook
UNCHECKED |= {"positions (none)", "rotary (none)", "repeat_heads (each its own)"}


@each_case
def test_arrays_of_another_memory_or_type(place, name):
    """Each argument by itself is refused."""
    case, inputs, operation = cases("cuda")[name], inputs_of(name), name.split(" (")[0]
    if {name, operation} & UNCHECKED:
        return
    places = [one for one in float_places(inputs) if one[0] not in IN_MAIN_MEMORY]
    for one in places:
        wrong = on_device(changed(inputs, one, lambda x: x.astype(np.int32)))
        if len(places) > 1 or not constants_of(name):  # constants take the type of an input
            with pytest.raises(ValueError, match="must be float32 for the cuda backend, got int32"):
                case.forward(*wrong.values())
        if not {name, operation} & ANYWHERE:
            wrong = changed(on_device(inputs), one, to_host)
            with pytest.raises(ValueError, match="must be in the GPU's memory, got ndarray"):
                case.forward(*wrong.values())


MADE_OF_PRODUCTS = {"linear_forward", "linear_backward"}
OF_VIEWS_AND_NUMBERS = {"context_backward", "layerwise_error_backward"}  # without a kernel


def has_kernel(operation):
    """Rather than being made of others that have one."""
    return getattr(Cuda, operation) is not getattr(Engine, operation) and operation not in MADE_OF_PRODUCTS


@each_case
def test_arrays_of_wrong_shape_are_named_as_in_the_textbook(place, name):
    case, inputs = cases("cuda")[name], cases("numpy")[name].inputs
    moved = replace(case, forward=lambda *given, **more: case.forward(*on_device_in_order(inputs, given), **more))
    for argument, i in (one for one in float_places(inputs) if one[0] not in IN_MAIN_MEMORY):
        for bad in reshaped(leaves(inputs[argument])[i or 0])[-2:]:  # an axis less, an axis more
            wrong = changed(inputs, (argument, i), lambda x, bad=bad: bad)
            assert_same_outcome("cuda", moved, argument, wrong)


def test_every_primitive_has_a_kernel_with_the_textbooks_signature():
    """But for a precision, which is a GPU's own affair."""
    static = {name for name in ops.OPERATIONS if isinstance(inspect.getattr_static(Engine, name), staticmethod)}
    for name in static - MADE_OF_PRODUCTS - OF_VIEWS_AND_NUMBERS:
        assert has_kernel(name), name
        expected, got = (inspect.signature(getattr(engine, name)).parameters for engine in (Engine, Cuda()))
        assert [(p.name, p.kind, p.default) for p in got.values() if p.name != "precision"] == [
            (p.name, p.kind, p.default) for p in expected.values()
        ], name


def test_tf32_has_its_own_products_and_nothing_else():
    different = {name for name in ops.OPERATIONS if getattr(CudaTF32, name) is not getattr(Cuda, name)}
    assert different == {"matmul", "weight_gradient"}
