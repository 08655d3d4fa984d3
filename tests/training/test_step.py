"""One training step: it equals the same step by hand, and changes nothing if a number is not finite."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small import small_config, small_model

from tinyprune.config import TrainConfig
from tinyprune.data import Segments
from tinyprune.errors import NotFiniteError
from tinyprune.training.optimizers import Optimizer, parameter_groups
from tinyprune.training.schedules import learning_rate
from tinyprune.training.step import LanguageModelling, Training, train_step


def make_training(objective: LanguageModelling | None = None, **options) -> Training:
    """Make a training with dropout; its text has six steps an epoch."""
    config = TrainConfig(**{"B": 2, "lr": 0.01, "warmup": 2, "clip": 0.1} | options)
    segments = Segments(np.random.default_rng(1).integers(0, 11, 70), config.B, 5)
    model = small_model(small_config(dropout=0.1, dropout_attention=0.2))
    return Training.start(model, segments, config, objective or LanguageModelling(), np.random.default_rng(3))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_steps_are_loss_backward_clipping_and_update(optimizer):
    """The text begins anew in the seventh step, without memory."""
    training, by_hand = make_training(optimizer=optimizer), make_training(optimizer=optimizer)
    model, config, rng, memory = by_hand.model, by_hand.config, np.random.default_rng(3), None
    update = Optimizer(config, parameter_groups(model.params, config.weight_decay), model.ops)
    for step in range(8):
        ids, targets, fresh = by_hand.segments.batch(step)
        assert fresh == (step in (0, 6))
        loss, memory, cache = model.loss(ids, targets, None if fresh else memory, rng)
        grads = model.backward(1.0, cache)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert norm > config.clip
        lr = learning_rate(config, step)
        update.step(model.params, {name: g * (config.clip / norm) for name, g in grads.items()}, lr)
        result = train_step(training)
        assert result.losses == pytest.approx({"loss": loss}, rel=1e-9)
        assert (result.grad_norm, result.lr, training.step) == (pytest.approx(norm, rel=1e-9), lr, step + 1)
        for name, x in model.params.items():
            assert_allclose(training.model.params[name], x, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("accident", ["loss", "gradient", "parameter"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_raises_and_leaves_parameters_as_they_were(accident, value):
    class Accident(LanguageModelling):
        def __call__(self, *arguments):
            losses, memory, grads = super().__call__(*arguments)
            if accident == "loss":
                losses["loss"] = float(value)
            if accident == "gradient":
                grads["layers.1.Wo"][0, 0] = value
            return losses, memory, grads

    training = make_training(Accident())
    if accident != "parameter":
        train_step(dataclasses.replace(training, objective=LanguageModelling()))
    if accident == "parameter":
        training.model.params["ln.bias"][0] = value
    arrays = training.model.params | training.optimizer.moments
    before = {name: x.copy() for name, x in arrays.items()}
    expected = f"the gradient of layers.1.Wo has a norm of {value}" if accident == "gradient" else "loss is "
    with pytest.raises(NotFiniteError, match=f"{expected}.*in step 1$"):
        train_step(training)
    assert training.step == 0
    for name, x in arrays.items():
        assert_array_equal(x, before[name])
