"""The trained model that later assignments start from."""

import numpy as np
import pytest

from tinyprune.course import given
from tinyprune.course.given import BudgetUsed
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYPRUNE_CACHE", str(tmp_path_factory.mktemp("course")))
        return given.trained()


def untrained(model, seed):
    return init_parameters(model.model.config, np.random.default_rng(seed))


def in_double(model, parameters):
    """Return the loss of the first batch, in float64 and by the NumPy backend."""
    ids, targets, _ = model.batches(1)._segments.batch(0)
    exact = {name: value.astype(np.float64) for name, value in parameters.items()}
    return Transformer(model.model.config, exact).loss(ids, targets)[0]


def gated_in_double(model, gate):
    """Return the trained parameters in float64, with both parts of each head multiplied by its gate."""
    parameters = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    for i, row in enumerate(gate):
        parameters[f"layers.{i}.Wo"] *= np.repeat(row, model.Dh)[:, None]
        parameters[f"layers.{i}.net.pv"] *= row[:, None, None]
    return parameters


def test_has_learned(model):
    assert model.bits(model.parameters) < 2.2 < 6 < model.bits(untrained(model, 0)) + 0.5


def test_gradient_of_gates_is_the_derivative(model):
    gate = np.random.default_rng(0).uniform(0.5, 1.5, (model.L, model.H))
    loss, dgate = model.batches(1).loss_and_gate_gradients(gate)
    assert loss == pytest.approx(in_double(model, model.gated(gate)), abs=1e-5)
    h = 1e-5  # small, so that hardly a unit of a ReLU opens or closes on the way
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        moved = np.zeros_like(gate)
        moved[layer, head] = h
        high, low = (in_double(model, gated_in_double(model, gate + sign * moved)) for sign in (1, -1))
        assert dgate[layer, head] == pytest.approx((high - low) / (2 * h), rel=1e-4, abs=1e-6)


def test_closed_heads_can_be_removed(model):
    gate = np.ones((model.L, model.H))
    gate[0, 1] = gate[2] = 0
    kept = [[0, 2, 3], [0, 1, 2, 3], []]
    smaller = given.remove_heads(model.parameters, kept, model.Dh)
    assert model.with_parameters(smaller).config.heads == (3, 4, 0)
    assert model.bits(smaller) == pytest.approx(model.bits(model.gated(gate)), abs=1e-4)


def test_steps_are_a_budget_and_go_through_the_text(model):
    batches = model.batches(2)
    losses = [batches.loss_and_gradients(model.parameters)[0] for _ in range(2)]
    assert losses[0] != losses[1]
    assert batches.used == 2
    with pytest.raises(BudgetUsed, match="all 2 steps are used"):
        batches.loss_and_gradients(model.parameters)


def test_parameters_that_do_not_fit_are_refused(model):
    Wo, Wq = (model.parameters[f"layers.1.{name}"] for name in ("Wo", "Wq"))
    with pytest.raises(ValueError, match="must have 16 rows for each head, got 10"):
        model.bits(model.parameters | {"layers.1.Wo": Wo[:10]})
    with pytest.raises(ValueError, match="must have shape"):
        model.bits(model.parameters | {"layers.1.Wq": Wq[:, :16]})


@pytest.mark.parametrize("gate", [np.ones((3, 3)), np.full((3, 4), np.nan)], ids=["shape", "nan"])
def test_gates_that_do_not_fit_are_refused(model, gate):
    with pytest.raises(ValueError, match="gate must be finite and of shape"):
        model.batches(1).loss_and_gate_gradients(gate)


def test_random_heads_are_computed_once_and_kept(model, monkeypatch):
    bits = model.random_heads(6, 5, 1)
    assert bits > model.bits(model.parameters)
    monkeypatch.setattr(given, "prune", lambda *arguments: pytest.fail("computed again"))
    assert model.random_heads(6, 5, 1) == bits


def test_second_call_loads_the_trained_model(model, monkeypatch, capsys):
    monkeypatch.setenv("TINYPRUNE_CACHE", str(model.path.parent))
    monkeypatch.setattr(given, "train", lambda *arguments: pytest.fail("trained again"))
    again = given.trained()
    assert capsys.readouterr().err == ""
    assert all(np.array_equal(value, again.parameters[name]) for name, value in model.parameters.items())
