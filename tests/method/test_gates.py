"""The gate stage: its gradients by complex step, lam and the controller, exact targets, and short real trainings."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small import MODELS, small_config, small_model, small_trainer

from tinyprune.config import ChooseConfig, GateConfig, TrainConfig
from tinyprune.errors import CheckpointError
from tinyprune.gradcheck import assert_gradients
from tinyprune.method.choose import open_best
from tinyprune.method.gates import GateObjective, add_gates, open_parts, settle, with_gates
from tinyprune.method.recipe import Recipe
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.transformer import Transformer
from tinyprune.ops import l0_forward, sigmoid
from tinyprune.training.metrics import read_metrics
from tinyprune.training.optimizers import Optimizer, parameter_groups

DROPOUT = {"dropout": 0.1, "dropout_attention": 0.2, "dropout_embedding": 0.1}


def noise() -> np.random.Generator:
    """Give the same gates and dropout each time; gates lie inside and outside the clip, and some are shut."""
    return np.random.default_rng(4)


def gates_of(arrays: dict) -> list[str]:
    return [name for name in arrays if name.endswith("log_alpha")]


def example(kind: str, gate: GateConfig, **options) -> tuple:
    """Make a model and what an objective takes: ids, targets, memory."""
    model = small_model(small_config(kind, **options), gate)
    # The noise leaves some of these gates room to move.
    same = small_model(small_config(), gate).params
    model.params |= {name: same[name] for name in gates_of(same)}
    rng = np.random.default_rng(9)
    ids, targets = rng.integers(0, 11, (2, 2, 5))
    memory = [rng.standard_normal((2, 4, 12)) for _ in range(2)] if model.config.M else None
    return model, ids, targets, memory


def gradients(gate: GateConfig, model, ids, targets, memory, step: int = 0, warmup: int = 0, target=None) -> tuple:
    """Compute losses and gradients with a new objective."""
    losses, _, grads = GateObjective(gate, warmup, 6, target=target)(model, ids, targets, memory, noise(), step)
    return losses, grads


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_the_whole_objective_by_complex_step(kind, hard):
    """Cross-entropy + lam · L0."""
    gate = GateConfig(lam=0.3, hard=hard)
    model, ids, targets, memory = example(kind, gate, **DROPOUT)
    constants = {"beta": gate.beta, "gamma": gate.gamma, "zeta": gate.zeta}
    moving = model.loss(ids, targets, memory, noise())[2].gate[1]
    assert moving.any() and not moving.all()

    def forward(*arrays):
        varied = Transformer(model.config, dict(zip(model.params, arrays, strict=True)), gate)
        total = varied.loss(ids, targets, memory, noise())[0]
        for i in range(2):
            total = total + gate.lam * l0_forward(varied.params[f"layers.{i}.log_alpha"], **constants)[0]
        return total, None

    def backward(dout, _):
        losses, grads = gradients(gate, model, ids, targets, memory)
        total = losses["loss"] + gate.lam * losses["l0"]
        assert total == pytest.approx(forward(*model.params.values())[0], rel=1e-13)
        return tuple(dout * grads[name] for name in model.params)

    names = list(model.params)
    assert_gradients(forward, backward, *model.params.values(), argument_names=names, directions=1)


def test_lam_grows_linearly_and_weighs_the_gradient_of_l0():
    """Without lam the gradients are those of the cross-entropy; lam adds to the gates, which it closes."""
    gate = GateConfig(lam=0.4)
    model, ids, targets, memory = example("all-attention", gate, **DROPOUT)
    _, _, cache = model.loss(ids, targets, memory, noise())
    plain = model.backward(1.0, cache)
    steps = (0, 8, 0), (1, 8, 0.05), (4, 8, 0.2), (8, 8, 0.4), (100, 8, 0.4), (0, 0, 0.4)
    for step, warmup, lam in steps:
        losses, grads = gradients(gate, model, ids, targets, memory, step, warmup)
        assert losses["lam"] == pytest.approx(lam, abs=1e-15) and list(grads) == list(plain)
        for name in gates_of(plain):
            p = sigmoid(model.params[name] - 0.333 * np.log(0.1 / 1.1))
            assert_allclose(grads[name] - plain[name], lam * p * (1 - p), rtol=1e-9, atol=1e-12)
        others = set(plain) - set(gates_of(plain))
        assert all(np.array_equal(grads[name], plain[name]) for name in others)


def test_heads_that_share_keys_have_one_gate():
    gates = [GateConfig(groups=x, distribution="deterministic", hard=False) for x in (False, True)]
    separate, shared = (gradients(gate, *example("llama", gate), target=5)[1] for gate in gates)
    name = "layers.1.log_alpha"
    assert_allclose(shared[name], [separate[name].sum()] * 3, rtol=1e-12)
    model = small_model(small_config("llama", H=6, kv_heads=3))
    how = ChooseConfig(by="michel", target_heads=5)
    scored = open_best(model, Recipe(how, gates[1]), [np.arange(6), np.array([0, 9, 4, 3, 0, 0])])
    assert np.concatenate(open_parts(scored)).tolist() == [0] * 4 + [1] * 4 + [0] * 4
    recipe = Recipe(ChooseConfig(), GateConfig(groups=True, hard=False))
    drawn = with_gates(model, recipe, 0)[0].gates(noise())
    assert all((x.values[::2] == x.values[1::2]).all() for x in drawn)


@pytest.mark.parametrize("target", [0, 3, 8, 13, 16])
def test_the_controller_holds_its_target(target):
    """16 gates that cost different amounts of loss when they close: the cheapest ones close."""
    values = np.linspace(0.002, 0.05, 16)
    controller = GateObjective(GateConfig(), 0, 16, target=target).controller
    params = {"log_alpha": np.full(16, 2.0)}
    optimizer = Optimizer(TrainConfig(), parameter_groups(params, 0.0))
    counts = []
    for step in range(2500):
        p = sigmoid(params["log_alpha"])
        start = 16 * sigmoid(np.array(2.0))
        pressure = controller.pressure(p.sum(), start + min(step / 200, 1) * (target - start))
        optimizer.step(params, {"log_alpha": (pressure - values) * p * (1 - p)}, 0.02)
        counts.append(p.sum())
    assert np.abs(np.array(counts[-500:]) - target).max() < 0.6
    if 0 < target < 16:
        assert (np.argsort(params["log_alpha"])[-target:] >= 16 - target).all()


def test_the_controllers_pressure_takes_the_place_of_lam():
    """In the first step all gates are where they should be, so there is none; it grows as the target falls."""
    gate = GateConfig(log_alpha_init=1.2)
    model, *arguments = example("all-attention", gate)
    for name in gates_of(model.params):
        model.params[name][...] = 1.2
    options = {"warmup": 10, "target": 1}
    results = [gradients(gate, model, *arguments, step, **options) for step in (0, 2, 5, 10, 20)]
    pressures = [losses["lam"] for losses, _ in results]
    assert pressures[0] == pytest.approx(0, abs=1e-12)
    assert 0 < pressures[1] < pressures[2] < pressures[3] == pressures[4]
    _, expected = gradients(GateConfig(lam=pressures[4]), model, *arguments)
    for name, grad in results[4][1].items():
        assert_allclose(grad, expected[name], rtol=1e-13)


@pytest.mark.parametrize("targets", [(None, 3), (3, None)])
def test_the_state_of_another_objective_is_refused(targets):
    one, two = (GateObjective(GateConfig(), 0, 6, target=target) for target in targets)
    with pytest.raises(CheckpointError, match=r"another setting of choose.target_heads"):
        two.load_state(one.state())


def test_deterministic_gates_are_sampled_ones_with_noise_of_one_half(monkeypatch):
    gate = GateConfig(hard=False)
    sampled = small_model(small_config(), gate)
    fixed = dataclasses.replace(gate, distribution="deterministic")
    still = dataclasses.replace(sampled, gate=fixed)
    ids = np.arange(10).reshape(2, 5)
    drawn = sampled.loss(ids, ids[:, ::-1].copy(), None, noise())[0]
    monkeypatch.setattr("tinyprune.ops.draw_noise", lambda n, rng, dtype: np.full(n, 0.5, dtype))
    losses, grads = [], []
    for model in (still, sampled):
        loss, _, cache = model.loss(ids, ids[:, ::-1].copy(), None, noise())
        losses.append(loss)
        grads.append(model.backward(1.0, cache))
    assert losses[0] == losses[1] != drawn
    assert all(np.array_equal(grads[0][name], grads[1][name]) for name in grads[0])
    assert any(grads[0][name].any() for name in gates_of(grads[0]))


GATES = {
    "hard": GateConfig(),
    "soft": GateConfig(hard=False),
    # Opens at 0.51, because ½ is not the middle of the stretched range.
    "hard, not symmetric": GateConfig(gamma=-0.5),
    "soft, hardly stretched": GateConfig(hard=False, gamma=-1e-6, zeta=1.000001),
}
each_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)


def gated(gate: GateConfig, log_alpha: list) -> Transformer:
    """Make a model with these log_alpha, a list for each layer."""
    heads = tuple(map(len, log_alpha))
    config = small_config(D=24, H=6, L=len(heads), heads=heads)
    model = small_model(config, gate, dtype=np.float32)
    for name, values in zip(gates_of(model.params), log_alpha, strict=True):
        model.params[name][...] = values
    return model


def all_gates(model: Transformer) -> tuple[np.ndarray, np.ndarray]:
    """log_alpha of all layers in a row, and the gates' values in evaluation."""
    log_alpha = [model.params[name] for name in gates_of(model.params)]
    return np.concatenate(log_alpha), np.concatenate([gates.values for gates in model.gates()])


LOG_ALPHA = {
    "different": [[0.3, -1.2, 2.2, 0.9], [-0.4, 0.1, -3.0, 0.05]],
    "all equal": [[2.0] * 4] * 2,
    "with ties": [[1.0, 0.5, 0.5, -1.0], [0.5, 1.0, 0.5, -2.0]],
    "far apart": [[1e4, -1e4, 3.0, 2.0], [50.0, -50.0, 1e-3, -1e4]],
    "neighbours": [np.nextafter(np.float32(7), [6, 7, 8, 7], dtype=np.float32), [7.0, 7.0, 7.0, 7.0]],
    "a layer without heads": [[], [0.4, -0.6, 0.2]],
}


@each_gate
@pytest.mark.parametrize("log_alpha", LOG_ALPHA.values(), ids=LOG_ALPHA)
def test_settling_opens_exactly_as_many_as_wanted_and_moves_nothing_else(log_alpha, gate):
    """Those with the largest log_alpha, of equal ones the first; a soft gate that must open opens half-way or more."""
    total = sum(map(len, log_alpha))
    for target in range(total + 1):
        model = gated(gate, log_alpha)
        before, values = all_gates(model)
        settle(model, target)
        after, settled = all_gates(model)
        were_open, opened = values != 0, settled != 0
        assert opened.sum() == target == sum(remove_closed_heads(model).config.heads)
        if were_open.sum() != target:
            ranked = np.argsort(-before, kind="stable")
            assert opened[ranked].tolist() == [True] * target + [False] * (total - target)
        same = opened == were_open
        assert same.sum() == total - abs(were_open.sum() - target)
        assert_array_equal(after[same], before[same])
        assert_array_equal(settled[same], values[same])
        assert (settled[opened & ~were_open] >= (1 if gate.hard else 0.4)).all()


@pytest.mark.parametrize("kind", MODELS)
def test_added_gates_are_open_and_change_nothing_in_evaluation(kind, rng):
    config = small_config(kind, heads=(2, 3))
    model = small_model(config, dtype=np.float32)
    before = dict(model.params)
    params = add_gates(model.params, config, GateConfig())
    assert model.params == before and gates_of(before) == []
    assert all(params[name] is x for name, x in before.items())
    assert [params[name].tolist() for name in gates_of(params)] == [[2.0, 2.0], [2.0, 2.0, 2.0]]
    assert all(params[name].dtype == np.float32 for name in params)
    gated = Transformer(config, params, GateConfig())
    assert [layer.tolist() for layer in open_parts(gated)] == [[True] * 2, [True] * 3]
    ids = rng.integers(0, 11, (2, 5))
    assert_array_equal(gated.forward(ids)[0], model.forward(ids)[0])


def test_pressure_closes_heads_and_without_pressure_they_stay(tmp_path):
    opened = {}
    for lam in (0.0, 10.0):
        gate, config = GateConfig(lam=lam), small_config()
        params = add_gates(small_model(config, dtype=np.float32).params, config, gate)
        model = Transformer(config, params, gate)
        trainer = small_trainer(tmp_path, model, GateObjective(gate, 20, 6), steps=80, lr=2e-2, log_every=1)
        with trainer.log:
            trainer.log.truncate(0)
            trainer.run()
        log = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "train"]
        opened[lam] = sum(remove_closed_heads(model).config.heads)
        assert opened[lam] == log[-1]["heads_open"]
    assert opened == {0.0: 6, 10.0: 0}
