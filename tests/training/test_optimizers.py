"""Each rule against its formula written out on the spot; state that survives a checkpoint to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small import backend_with

from tinyprune.config import TrainConfig
from tinyprune.errors import CheckpointError, NotFiniteError, UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.optimizers import (
    AdamW,
    ParameterGroup,
    clip_factor,
    gradient_norm,
    make_optimizer,
    parameter_groups,
)

RULES = ("adamw", "lamb", "sgd")
SHAPES = {"layers.0.Wq": (3, 4), "layers.0.bo": (4,), "layers.0.log_alpha": (2,)}
GROUPS = {
    "layers.0.Wq": ParameterGroup(weight_decay=0.3),
    "layers.0.bo": ParameterGroup(),
    "layers.0.log_alpha": ParameterGroup(lr_multiplier=10.0),
}


def config(rule: str) -> TrainConfig:
    return TrainConfig(optimizer=rule, beta1=0.8, beta2=0.95, eps=1e-6)


def arrays(seed: int, dtype: type = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def moments_by_hand(gradients: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """m̂ and v̂ as the weighted means that their recursions amount to."""
    t = len(gradients)
    m = sum(0.2 * 0.8 ** (t - 1 - i) * g for i, g in enumerate(gradients))
    v = sum(0.05 * 0.95 ** (t - 1 - i) * g**2 for i, g in enumerate(gradients))
    return m / (1 - 0.8**t), v / (1 - 0.95**t)


def direction_by_hand(rule: str, theta: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """What the learning rate is multiplied by, after these gradients."""
    if rule == "sgd":
        return sum(0.8 ** (len(gradients) - 1 - i) * g for i, g in enumerate(gradients)) + decay * theta
    m, v = moments_by_hand(gradients)
    d = m / (np.sqrt(v) + 1e-6) + decay * theta
    return d if rule == "adamw" else np.linalg.norm(theta) / np.linalg.norm(d) * d


@pytest.mark.parametrize("rule", RULES)
def test_three_steps_by_hand(rule):
    params = arrays(0)
    expected = {name: param.copy() for name, param in params.items()}
    optimizer = make_optimizer(config(rule), GROUPS)
    history = []
    for step, lr in enumerate((0.1, 0.05, 0.2)):
        history.append(arrays(step + 1))
        optimizer.step(params, history[-1], lr)
        for name, group in GROUPS.items():
            gradients = [grads[name] for grads in history]
            direction = direction_by_hand(rule, expected[name], gradients, group.weight_decay)
            expected[name] = expected[name] - lr * group.lr_multiplier * direction
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-13, atol=1e-13, err_msg=f"{step} {name}")


def test_adamw_equals_torch():
    torch = pytest.importorskip("torch")
    params = arrays(0)
    theirs = {name: torch.tensor(param, requires_grad=True) for name, param in params.items()}
    lr = 0.01
    peer = torch.optim.AdamW(
        [
            {"params": [theirs[name]], "lr": lr * group.lr_multiplier, "weight_decay": group.weight_decay}
            for name, group in GROUPS.items()
        ],
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    optimizer = make_optimizer(config("adamw"), GROUPS)
    for step in range(20):
        grads = arrays(step + 1)
        for name, grad in grads.items():
            theirs[name].grad = torch.tensor(grad)
        peer.step()
        optimizer.step(params, grads, lr)
    for name, param in params.items():
        np.testing.assert_allclose(param, theirs[name].detach().numpy(), rtol=0, atol=1e-12, err_msg=name)


def test_lamb_where_a_norm_is_zero():
    params = {"zero": np.zeros(2), "still": np.ones(2), "no heads": np.zeros((2, 0))}
    optimizer = make_optimizer(config("lamb"), {name: ParameterGroup() for name in params})
    grads = {"zero": np.array([4.0, -4.0]), "still": np.zeros(2), "no heads": np.zeros((2, 0))}
    optimizer.step(params, grads, 0.5)
    # The first direction is g / (|g| + eps).
    np.testing.assert_allclose(params["zero"], [-0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(params["still"], [1.0, 1.0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_identity_are_kept_and_gradients_untouched(rule, dtype):
    params, grads = arrays(0, dtype), arrays(1, dtype)
    same, before = dict(params), {name: grad.copy() for name, grad in grads.items()}
    optimizer = make_optimizer(config(rule), GROUPS)
    optimizer.step(params, grads, np.float64(0.1))
    for name in SHAPES:
        assert params[name] is same[name]
        assert params[name].dtype == dtype
        np.testing.assert_array_equal(grads[name], before[name])
    assert {value.dtype for key, value in optimizer.state().items() if key != "steps"} == {np.dtype(dtype)}


@pytest.mark.parametrize("rule", RULES)
def test_the_backend_does_the_arithmetic_of_every_parameter(rule):
    seen = []

    def update(param, grad, *moments, **constants):
        seen.append((param.shape, constants["lr"], constants["decay"], constants["grad_scale"]))

    def updates(params, grads, ms, vs, *, lrs, decays, **constants):
        for param, grad, m, v, lr, decay in zip(params, grads, ms, vs, lrs, decays, strict=True):
            update(param, grad, m, v, lr=lr, decay=decay, **constants)

    rules = {"adamw_updates": updates, "lamb_update": update, "sgd_update": update}
    optimizer = make_optimizer(config(rule), GROUPS, backend_with(**rules))
    optimizer.step(arrays(0), arrays(1), 0.1, np.float32(0.5))
    assert seen == [((3, 4), 0.1, 0.3, 0.5), ((4,), 0.1, 0.0, 0.5), ((2,), 1.0, 0.0, 0.5)]
    assert all(type(number) is float for call in seen for number in call[1:])


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_without_gradient_stays_even_with_decay(rule):
    params = arrays(0)
    before = params["layers.0.Wq"].copy()
    optimizer = make_optimizer(config(rule), GROUPS)
    optimizer.step(params, {"layers.0.bo": np.ones(4)}, 0.1)
    np.testing.assert_array_equal(params["layers.0.Wq"], before)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_steps_are_bit_identical(rule, tmp_path):
    def train(optimizer, params, steps):
        for step in steps:
            grads = arrays(step + 1, np.float32)
            if step < 2:
                del grads["layers.0.log_alpha"]  # a parameter whose gradients come later
            optimizer.step(params, grads, 0.1 / (step + 1))

    straight = arrays(0, np.float32)
    train(make_optimizer(config(rule), GROUPS), straight, range(6))

    first, params = make_optimizer(config(rule), GROUPS), arrays(0, np.float32)
    train(first, params, range(1))
    save_checkpoint(tmp_path / "params", params, {})
    save_checkpoint(tmp_path / "state", first.state(), {})
    train(first, params, range(1, 4))  # what a killed run still did must not reach the resumed one

    resumed = make_optimizer(config(rule), GROUPS)
    resumed.load_state(load_checkpoint(tmp_path / "state")[0])
    params, _ = load_checkpoint(tmp_path / "params")
    train(resumed, params, range(1, 6))
    for name in SHAPES:
        np.testing.assert_array_equal(params[name], straight[name], err_msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_state_before_the_first_step(rule):
    optimizer = make_optimizer(config(rule), GROUPS)
    state = optimizer.state()
    assert list(state) == ["steps"]
    assert state["steps"].dtype == np.int64
    optimizer.load_state(state)
    optimizer.step(arrays(0), arrays(1), 0.1)
    assert optimizer.steps == 1


def test_loaded_state_is_a_copy():
    first, second = make_optimizer(config("sgd"), GROUPS), make_optimizer(config("sgd"), GROUPS)
    first.step(arrays(0), arrays(1), 0.1)
    second.load_state(first.state())
    second.step(arrays(0), arrays(2), 0.1)
    np.testing.assert_array_equal(first.state()["momentum.layers.0.bo"], arrays(1)["layers.0.bo"])


def state_after_one_step(rule: str) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(config(rule), GROUPS)
    optimizer.step(arrays(0), arrays(1), 0.1)
    return optimizer.state()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("v.layers.0.bo"), "lacks v.layers.0.bo"),
        (lambda state: state.update({"m.layers.7.bo": np.zeros(4)}), "unknown m.layers.7.bo"),
        (lambda state: state.update({"m.layers.0.bo": np.zeros(4, np.int64)}), "floating-point"),
        (lambda state: state.pop("steps"), "count of steps"),
        (lambda state: state.update(steps=np.array(-1)), "count of steps"),
        (lambda state: state.update(steps=np.array(1.5)), "count of steps"),
        (lambda state: state.update(steps=np.array([1, 2])), "count of steps"),
        (lambda state: (state.clear(), state.update(steps=np.array(1))), "lacks"),
        (lambda state: (state.clear(), state.update(state_after_one_step("sgd"))), "lacks m.layers.0.Wq"),
    ],
)
def test_foreign_state_is_refused(change, words):
    state = state_after_one_step("adamw")
    change(state)
    optimizer = make_optimizer(config("adamw"), GROUPS)
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state(state)
    assert optimizer.steps == 0


@pytest.mark.parametrize("wrong", [np.zeros((4, 1)), np.zeros(4, np.float32)])
def test_state_that_does_not_fit_the_parameters_is_refused_before_any_change(wrong):
    state = state_after_one_step("adamw")
    state["v.layers.0.bo"] = wrong
    optimizer, params = make_optimizer(config("adamw"), GROUPS), arrays(0)
    optimizer.load_state(state)
    with pytest.raises(CheckpointError, match=r"v\.layers\.0\.bo"):
        optimizer.step(params, arrays(1), 0.1)
    for name, param in arrays(0).items():
        np.testing.assert_array_equal(params[name], param)
    assert optimizer.steps == 1


def test_gradients_that_do_not_fit_are_refused():
    optimizer, params = make_optimizer(config("adamw"), GROUPS), arrays(0)
    with pytest.raises(UsageError, match="shape"):
        optimizer.step(params, {"layers.0.bo": np.ones(1)}, 0.1)
    with pytest.raises(UsageError, match="no parameter R"):
        optimizer.step(params, {"R": np.ones(1)}, 0.1)
    with pytest.raises(UsageError, match="no parameter group"):
        optimizer.step({**params, "R": np.ones(1)}, {"R": np.ones(1)}, 0.1)
    del params["layers.0.Wq"]
    with pytest.raises(UsageError, match=r"no parameter layers\.0\.Wq"):
        optimizer.step(params, {"layers.0.bo": np.ones(4)}, 0.1)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_cannot_update_is_refused_before_any_change(rule, backend):
    optimizer, params, grads = make_optimizer(config(rule), GROUPS, get_backend(backend)), arrays(0), arrays(1)
    last = "layers.0.log_alpha"
    read_only = params[last].copy()
    read_only.flags.writeable = False
    cases = [
        ({}, {last: grads[last].astype(np.float32)}, "must have the parameter's dtype float64, got float32"),
        ({last: read_only}, {}, "must be writeable"),
        ({last: np.ones(4)[::2]}, {}, r"C-contiguous, got strides \(16,\) for shape \(2,\)"),
    ]
    for other_params, other_grads, words in cases:
        with pytest.raises(UsageError, match=words):
            optimizer.step(params | other_params, grads | other_grads, 0.1)
        assert optimizer.steps == 0
        for name, param in arrays(0).items():
            np.testing.assert_array_equal(params[name], param)


def test_eps_of_zero_is_refused():
    with pytest.raises(UsageError, match=r"train\.eps"):
        AdamW(TrainConfig(eps=0.0), GROUPS)


IN_LAYERS = "Wq Wk Wv Wr Wo pk pv ffn.W1 ffn.W2", "bo u w ffn.b1 ffn.b2 ln.scale ffn.ln.bias", "log_alpha"
APART = "embedding embedding.0 projection.1 cluster.weight R positions", "cluster.bias out_bias out_bias.0 ln.bias"


def test_parameter_groups():
    decays, plain, gate = ([f"layers.12.{name}" for name in names.split()] for names in IN_LAYERS)
    decays, plain = decays + APART[0].split(), plain + APART[1].split()
    expected = dict.fromkeys(decays, ParameterGroup(1.0, 0.25)) | dict.fromkeys(plain, ParameterGroup(1.0, 0.0))
    expected |= dict.fromkeys(gate, ParameterGroup(7.0, 0.0))
    assert parameter_groups(expected, 0.25, 7.0) == expected


NUMPY = get_backend("numpy")


@pytest.mark.parametrize(("max_norm", "factor"), [(2.0, 0.4), (0.0, 1.0), (5.0, 1.0), (6.0, 1.0)])
def test_clipping_brings_the_common_norm_down_to_the_largest_allowed(max_norm, factor):
    grads = {"a": np.array([[3.0, 0.0]]), "b": np.array([4.0])}
    norm = gradient_norm(grads, NUMPY)
    assert norm == 5.0
    assert clip_factor(norm, max_norm) == factor
    assert gradient_norm({}, NUMPY) == 0.0 and clip_factor(0.0, 1.0) == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_the_step_multiplies_gradients_by_the_factor_as_it_reads_them(rule):
    one, two = make_optimizer(config(rule), GROUPS), make_optimizer(config(rule), GROUPS)
    params, expected = arrays(0, np.float32), arrays(0, np.float32)
    for step in range(3):
        grads = arrays(step + 1, np.float32)
        one.step(params, grads, 0.1, 0.3)
        two.step(expected, {name: grad * 0.3 for name, grad in grads.items()}, 0.1)
    for name in SHAPES:
        np.testing.assert_array_equal(params[name], expected[name])


def test_the_norm_is_summed_in_float64():
    grads = {"a": np.concatenate([[2**13], np.ones(1001)]).astype(np.float32)}
    assert math.isclose(gradient_norm(grads, NUMPY), math.sqrt(2**26 + 1001), rel_tol=1e-15)
    # The squares of 1e30 are beyond float32.
    grads = {"b": np.full(2, 1e30, np.float32)}
    assert math.isclose(gradient_norm(grads, NUMPY), math.sqrt(2) * float(np.float32(1e30)), rel_tol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_the_first_gradient_that_is_not_finite_is_named(bad):
    grads = {"a": np.array([3.0]), "layers.1.Wk": np.array([1.0, bad]), "layers.2.Wk": np.array([np.nan])}
    with pytest.raises(NotFiniteError, match=r"layers\.1\.Wk"):
        gradient_norm(grads, NUMPY)
