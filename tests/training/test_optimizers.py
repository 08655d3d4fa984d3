"""Each rule equals its formula written out on the spot; resumed from its state it continues to the last bit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune.config import TrainConfig
from tinyprune.errors import CheckpointError, NotFiniteError, UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.ops.engine import Engine
from tinyprune.training import optimizers
from tinyprune.training.optimizers import Optimizer, ParameterGroup, clip_factor, gradient_norm, parameter_groups

NUMPY = get_backend("numpy")
SHAPES = {"layers.0.Wq": (32, 4), "layers.0.bo": (4,), "layers.0.log_alpha": (2,)}
GROUPS = {"layers.0.Wq": ParameterGroup(weight_decay=0.3), "layers.0.bo": ParameterGroup()}
GROUPS |= {"layers.0.log_alpha": ParameterGroup(lr_multiplier=10.0)}


@pytest.fixture(params=["adamw", "lamb", "scales", "scales-offsets"])
def rule(request) -> str:
    """The name of a rule; tests that use it run with each."""
    return request.param


def make(rule: str, ops: Engine | None = None) -> optimizers.Optimizer:
    return Optimizer(TrainConfig(optimizer=rule, beta1=0.8, beta2=0.95, eps=1e-6), GROUPS, ops)


def arrays(seed: int, dtype: type = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def direction_by_hand(rule: str, theta: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """What the learning rate is multiplied by, after these gradients; moments are written out as weighted sums."""
    ages, t = range(len(gradients))[::-1], len(gradients)
    m = sum(0.8**age * g for age, g in zip(ages, gradients, strict=True))
    v = sum(0.95**age * g**2 for age, g in zip(ages, gradients, strict=True))
    d = 0.2 * m / (1 - 0.8**t) / (np.sqrt(0.05 * v / (1 - 0.95**t)) + 1e-6) + decay * theta
    return d if rule == "adamw" else np.linalg.norm(theta) / np.linalg.norm(d) * d


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_three_steps_by_hand(rule):
    optimizer, params, expected, history = make(rule), arrays(0), arrays(0), []
    for step, lr in enumerate((0.1, 0.05, 0.2)):
        history.append(arrays(step + 1))
        optimizer.step(params, history[-1], lr)
        for name, group in GROUPS.items():
            gradients = [grads[name] for grads in history]
            direction = direction_by_hand(rule, expected[name], gradients, group.weight_decay)
            expected[name] = expected[name] - lr * group.lr_multiplier * direction
            assert_allclose(params[name], expected[name], rtol=1e-13, atol=1e-13, err_msg=f"{step} {name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_keeps_dtypes_gradients_and_what_has_no_gradient(rule, dtype):
    params, grads = arrays(0, dtype), arrays(1, dtype)
    del grads["layers.0.Wq"]  # which has weight decay
    same, before = dict(params), {name: grad.copy() for name, grad in grads.items()}
    optimizer = make(rule)
    optimizer.step(params, grads, np.float64(0.1))
    for name, param in params.items():
        assert param is same[name] and param.dtype == dtype
    for name, grad in grads.items():
        assert_array_equal(grad, before[name])
    assert_array_equal(params["layers.0.Wq"], arrays(0, dtype)["layers.0.Wq"])
    assert {value.dtype for key, value in optimizer.state().items() if key != "steps"} == {np.dtype(dtype)}


@pytest.mark.parametrize("before", [0, 1])
def test_resumed_steps_are_bit_identical(rule, before):
    def train(optimizer, params, steps):
        for step in steps:
            grads = arrays(step + 1, np.float32)
            if step < 2:
                del grads["layers.0.log_alpha"]  # a parameter whose gradients come later
            optimizer.step(params, grads, 0.1 / (step + 1))

    first, resumed, straight = make(rule), make(rule), arrays(0, np.float32)
    train(first, straight, range(before))
    state, params = first.state(), {name: param.copy() for name, param in straight.items()}
    assert state["steps"].dtype == np.int64 and (list(state) == ["steps"]) == (before == 0)
    resumed.load_state(state)
    train(first, straight, range(before, 6))  # must not reach the resumed one
    train(resumed, params, range(before, 6))
    assert resumed.steps == 6
    for name in SHAPES:
        assert_array_equal(params[name], straight[name], err_msg=name)


def state_after_one_step(rule: str) -> dict[str, np.ndarray]:
    optimizer = make(rule)
    optimizer.step(arrays(0), arrays(1), 0.1)
    return optimizer.state()


FOREIGN = [(lambda state: state.pop("v.layers.0.bo"), "lacks v.layers.0.bo")]
FOREIGN += [(lambda state: state.update({"m.layers.7.bo": np.zeros(4)}), "unknown m.layers.7.bo")]
FOREIGN += [(lambda state: state.pop("steps"), "count of steps")]
FOREIGN += [(lambda state: (state.clear(), state.update(steps=np.array(1))), "lacks")]


@pytest.mark.parametrize(("change", "words"), FOREIGN)
def test_foreign_state_is_refused(change, words):
    state = state_after_one_step("adamw")
    change(state)
    optimizer = make("adamw")
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state(state)
    assert optimizer.steps == 0


def assert_refuses(optimizer: optimizers.Optimizer, error: type, words: str, params: dict, grads: dict) -> None:
    """Check that a step with these parameters and gradients beside the usual ones is refused before any change."""
    usual, steps = arrays(0), optimizer.steps
    given = {name: param for name, param in (usual | params).items() if param is not None}
    with pytest.raises(error, match=words):
        optimizer.step(given, arrays(1) | grads, 0.1)
    assert optimizer.steps == steps
    for name, param in arrays(0).items():
        assert_array_equal(usual[name], param)


@pytest.mark.parametrize("wrong", [np.zeros((4, 1)), np.zeros(4, np.float32)])
def test_state_that_does_not_fit_the_parameters_is_refused(wrong):
    optimizer = make("adamw")
    optimizer.load_state(state_after_one_step("adamw") | {"v.layers.0.bo": wrong})
    assert_refuses(optimizer, CheckpointError, r"v\.layers\.0\.bo", {}, {})


REFUSED = [({}, {"layers.0.bo": np.ones(1)}, "shape")]
REFUSED += [({}, {"layers.0.log_alpha": np.ones(2, np.float32)}, "dtype float64 and shape .*, got float32")]
R = {"R": np.ones(1)}
REFUSED += [({}, R, "no parameter R"), (R, R, "no parameter group")]
REFUSED += [({"layers.0.Wq": None}, {}, r"no parameter layers\.0\.Wq")]
REFUSED += [({"layers.0.log_alpha": np.frombuffer(bytes(16))}, {}, "must be writeable")]
REFUSED += [({"layers.0.log_alpha": np.ones(4)[::2]}, {}, r"C-contiguous, got strides \(16,\) for shape \(2,\)")]


@pytest.mark.parametrize(("params", "grads", "words"), REFUSED)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_a_rule_cannot_update_is_refused(params, grads, words, rule, backend):
    assert_refuses(make(rule, get_backend(backend)), UsageError, words, params, grads)


IN_LAYERS = "Wq Wk Wv Wr Wo pk pv ffn.W1 ffn.W2", "bo u w ffn.b1 ffn.b2 ln.scale ffn.ln.bias", "log_alpha"
APART = "embedding embedding.0 projection.1 cluster.weight R positions", "cluster.bias out_bias out_bias.0 ln.bias"


def test_parameter_groups():
    decays, plain, gate = ([f"layers.12.{name}" for name in names.split()] for names in IN_LAYERS)
    decays, plain = decays + APART[0].split(), plain + APART[1].split()
    expected = dict.fromkeys(decays, ParameterGroup(1.0, 0.25))
    expected |= dict.fromkeys(plain, ParameterGroup(1.0, 0.0))
    expected |= dict.fromkeys(gate, ParameterGroup(7.0, 0.0))
    assert parameter_groups(expected, 0.25, 7.0) == expected


@pytest.mark.parametrize(("max_norm", "factor"), [(2.0, 0.4), (0.0, 1.0), (5.0, 1.0), (6.0, 1.0)])
def test_clipping_brings_the_common_norm_down_to_the_largest_allowed(max_norm, factor):
    grads = {"a": np.array([[3.0, 0.0]]), "b": np.array([4.0])}
    norm = gradient_norm(grads, NUMPY)
    assert norm == 5.0
    assert clip_factor(norm, max_norm) == factor
    assert gradient_norm({}, NUMPY) == 0.0 and clip_factor(0.0, 1.0) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_the_first_gradient_that_is_not_finite_is_named(bad):
    grads = {"a": np.array([3.0]), "layers.1.Wk": np.array([1.0, bad]), "layers.2.Wk": np.array([np.nan])}
    with pytest.raises(NotFiniteError, match=r"layers\.1\.Wk"):
        gradient_norm(grads, NUMPY)
