"""What operations promise on a GPU, beside what tests/kernels/test_contract.py asks of every backend."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.gradcheck.catalogue import operation_cases, other_cases
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.engine import Cuda, CudaTF32, in_main_memory
from tinyprune.ops.engine import Engine

from .. import test_contract as contract
from ..compare import GPU, assert_close, assert_same_bits, leaves, mapped
from ..test_contract import IN_MAIN_MEMORY, cases, changed, float_places, of_dtype
from .compare import normal

each_case = pytest.mark.parametrize("name", [name for name in contract.NAMES if name not in contract.HOST])


def inputs_of(name):
    return of_dtype(cases(GPU)[name].inputs, np.float32)


def constants_of(name):
    """The arrays among them."""
    return of_dtype({k: x for k, x in cases(GPU)[name].constants.items() if isinstance(x, np.ndarray)}, np.float32)


def on_device(inputs, move=to_device):
    """Moved to the GPU's memory, but for those that stay where they are."""
    return {name: x if name in IN_MAIN_MEMORY else mapped(move, x) for name, x in inputs.items()}


def view_of(x):
    """The same numbers in the GPU's memory, with NaN between their rows, and not aligned to 16 bytes."""
    if x.dtype != np.float32 or not x.ndim:
        return x
    wider = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, np.float32)
    wider[..., 1:-2] = x
    return to_device(wider)[(*(x.ndim - 1) * (slice(None),), slice(1, -2))]


@each_case
def test_views_that_are_not_aligned(place, name):
    case, expected = cases(GPU)[name], contract.textbook(name)
    dout = mapped(view_of, of_dtype(contract.draw_dout(expected[0], np.float64), np.float32))
    inputs, constants = (on_device(found(name), view_of) for found in (inputs_of, constants_of))
    assert_close(contract.run(GPU, case, inputs, np.float32, dout, **constants), expected, np.float32)


def test_memories_are_read_where_they_lie(place):
    m, x = normal((5, 3, 2), (4, 9, 5))
    for there, here in ((lambda m: m.T, lambda x: x[1:3]), (lambda m: m.T[:, 1:], lambda x: x[:2, 4:])):
        got, _ = Cuda().context_forward(there(to_device(m)), here(to_device(x)))
        assert np.array_equal(to_host(got), np.concatenate([there(m), here(x)], axis=1))


def test_nan_and_inf_are_not_hidden_by_being_dropped(place):
    y, rng = np.array([np.nan, np.inf, -np.inf, 1.0] * 10, np.float32), np.random.default_rng
    with np.errstate(invalid="ignore"):
        expected, _ = ops.residual_forward(np.zeros_like(y), y, 0.5, rng(2))
        got, _ = Cuda().residual_forward(to_device(np.zeros_like(y)), to_device(y), 0.5, rng(2))
    np.testing.assert_array_equal(to_host(got), expected)


def test_layernorm_of_one_feature_has_no_gradient(place, both_roundings):
    x, dout, scale, bias = normal((9, 1), (9, 1), (1,), (1,))
    _, cache = Cuda().layernorm_forward(*map(to_device, (x, scale, bias)))
    assert not to_host(Cuda().layernorm_backward(to_device(dout), cache)[0]).any()


def test_a_loss_has_its_gradient_in_either_memory(place):
    case = cases(GPU)["cross_entropy"]
    _, cache = case.forward(*on_device(inputs_of("cross_entropy")).values())
    found = [case.backward(x, cache) for x in (0.7, to_device(np.array(0.7, np.float32)))]
    assert_same_bits(*mapped(to_host, found))


# The catalogue copies arguments of these, or nothing is computed from them, or by NumPy, wherever they lie.
ANYWHERE = {"adamw_updates", "add_rows", "context", "distillation", "lamb_update", "matmul (onto)", "scales_update"}
ANYWHERE |= {"set_rows"}
UNCHECKED = {"adaptive_embedding (last cluster absent)", "adaptive_softmax (last cluster absent)"}
UNCHECKED |= {"adaptive_log_probabilities", "context (no memory)", "distillation"}  # as in the textbook
UNCHECKED |= {"positions (none)", "rotary (none)", "repeat_heads (each its own)", "scales_update"}


@each_case
def test_arrays_of_another_memory_type_or_shape(place, name):
    """Each argument by itself is refused; of a wrong shape in the textbook's words."""
    case, inputs, operation = cases(GPU)[name], inputs_of(name), name.split(" (")[0]

    def forward(*given, **more):
        """Of other values of these inputs, in main memory."""
        return case.forward(*on_device(of_dtype(dict(zip(inputs, given, strict=True)), np.float32)).values(), **more)

    places = [one for one in float_places(inputs) if one[0] not in IN_MAIN_MEMORY]
    for argument, i in places:
        for bad in contract.reshaped(leaves(inputs[argument])[i or 0])[-2:]:  # an axis less, an axis more
            wrong = changed(cases("numpy")[name].inputs, (argument, i), lambda x, bad=bad: bad)
            contract.assert_same_outcome(GPU, replace(case, forward=forward), argument, wrong)
    for one in () if {name, operation} & UNCHECKED else places:
        if len(places) > 1 or not constants_of(name):  # constants take the type of an input
            with pytest.raises(ValueError, match="must be float32 for the cuda backend, got int32"):
                case.forward(*on_device(changed(inputs, one, lambda x: x.astype(np.int32))).values())
        if not {name, operation} & ANYWHERE:
            with pytest.raises(ValueError, match="must be in the GPU's memory, got ndarray"):
                case.forward(*changed(on_device(inputs), one, to_host).values())


MADE_OF_OTHERS = {"linear_forward", "linear_backward", "context_backward"}


def test_kernels_have_the_textbooks_signature():
    """But for a precision, which only a GPU has. What has no kernel is computed in main memory."""
    static = {name for name in ops.OPERATIONS if isinstance(inspect.getattr_static(Engine, name), staticmethod)}
    with_kernel = [name for name in static - MADE_OF_OTHERS if getattr(Cuda, name).__name__ != "run"]
    assert len(with_kernel) >= 36
    for name in with_kernel:
        expected, got = (inspect.signature(getattr(engine, name)).parameters for engine in (Engine, Cuda()))
        assert [(p.name, p.kind, p.default) for p in got.values() if p.name != "precision"] == [
            (p.name, p.kind, p.default) for p in expected.values()
        ], name


def test_a_primitive_without_a_kernel_is_computed_in_main_memory(place, monkeypatch):
    for name in ("gelu_forward", "gelu_backward", "lamb_update"):
        monkeypatch.setattr(Cuda, name, in_main_memory(name))
    for case in [*operation_cases(Cuda()), *other_cases(Cuda())]:
        if case.operation in ("gelu", "lamb_update"):
            got = contract.run(GPU, case, of_dtype(case.inputs, np.float32), np.float32)
            assert_close(got, contract.textbook(case.operation), np.float32)
    gaps = to_device(np.ones((3, 8), np.float32))[:, 2:6]
    with pytest.raises(ValueError, match="is updated in place and must be C-contiguous"):
        Cuda().lamb_update(*[gaps] * 4, lr=0.1, decay=0.0, constants=ops.adamw.AdamConstants(0.8, 0.9, 1e-3, 1))


def test_tf32_has_its_own_products_and_nothing_else():
    different = {name for name in ops.OPERATIONS if getattr(CudaTF32, name) is not getattr(Cuda, name)}
    assert different == {"matmul", "matmuls", "weight_gradient", "weight_gradients"}
