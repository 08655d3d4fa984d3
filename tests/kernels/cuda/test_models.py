"""Whole models on the GPU against the textbook: loss, every gradient, training, gates, removal, text."""

from unittest import mock

import numpy as np
import pytest
from small import small_config, small_model, small_trainer

from tinyprune.config import GateConfig, TrainConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import DeviceArray, to_host
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.engine import CudaTF32
from tinyprune.method.gates import GateObjective
from tinyprune.model.transformer import Transformer
from tinyprune.training.checkpoints import load_checkpoint
from tinyprune.training.optimizers import Optimizer, parameter_groups
from tinyprune.training.step import LanguageModelling

from ..compare import GPU

TOLERANCE = 1e-5
DROPOUT = {"dropout": 0.1, "dropout_attention": 0.2, "dropout_embedding": 0.1}
OPENED = np.array([[True, False, True], [False, False, False]])  # a layer may have none
ADAPTIVE = {"cutoffs": (4, 7), "div_value": 2}
CASES = {
    "all-attention, soft gates, adaptive softmax": ("all-attention", GateConfig(hard=False), ADAPTIVE),
    "transformer-xl, gates": ("transformer-xl", GateConfig(), {}),
}


def pair(kind="all-attention", gate=None, opened=None, backend=GPU, **options):
    """The same model in the textbook's float64 and on the GPU."""
    config = small_config(kind, **options)
    expected = small_model(config, gate, opened)
    params = {name: value.astype(np.float32) for name, value in expected.params.items()}
    return expected, Transformer(config, params, gate, get_backend(backend))


def text(config, B=2):
    """Tokens and those that follow, (2 segments, B, T) each."""
    return np.random.default_rng(5).integers(0, config.V, (2, 2, B, config.T))


def assert_near(got, expected, tolerance=TOLERANCE, of_gates=10 * TOLERANCE):
    """‖a − b‖ ≤ tolerance · ‖b‖ for each name, another for gates: of their gradients, long sums, little is left."""
    assert list(got) == list(expected)
    for name, value in got.items():
        assert isinstance(value, DeviceArray), name
        error = np.linalg.norm(to_host(value) - expected[name])
        allowed = of_gates if name.endswith("log_alpha") else tolerance
        assert error <= allowed * np.linalg.norm(expected[name]) + 1e-7, (name, error)


@pytest.mark.parametrize(("kind", "gate", "options"), CASES.values(), ids=CASES)
def test_loss_and_gradients_over_two_segments(place, kind, gate, options):
    models = pair(kind, gate, OPENED if gate else None, **DROPOUT, **options)
    ids, targets = text(models[0].config)
    memories, rngs = [None, None], [np.random.default_rng(3) for _ in models]
    for segment in range(2):
        found = []
        for i, (model, rng) in enumerate(zip(models, rngs, strict=True)):
            loss, memories[i], cache = model.loss(ids[segment], targets[segment], memories[i], rng)
            found.append((float(loss), model.backward(1.0, cache)))
        (expected, expected_grads), (loss, grads) = found
        assert abs(loss - expected) <= TOLERANCE * expected
        assert_near(grads, expected_grads, of_gates=1e-4)
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state  # the same draws, in number and order


def test_tf32_is_off_by_what_its_rounding_explains(place):
    models = pair("transformer-xl")
    models[1].ops = CudaTF32()
    ids, targets = text(models[0].config)
    (loss, _, cache), (got_loss, _, got_cache) = (model.loss(ids[0], targets[0]) for model in models)
    assert 1e-6 < abs(float(got_loss) / loss - 1) < 2e-3
    assert_near(models[1].backward(1.0, got_cache), models[0].backward(1.0, cache), 2e-2)


def test_training_is_the_same_to_the_last_bit_each_time_and_if_resumed(place, tmp_path):
    tensors = []
    for directory, steps in (("whole", 2), ("resumed", 1), ("resumed", 1)):
        (tmp_path / directory).mkdir(exist_ok=True)
        trainer = small_trainer(tmp_path / directory, pair(L=1, **DROPOUT)[1], steps=2)
        if trainer.path.exists():
            trainer.restore()
        with trainer.log:
            for _ in range(steps):
                trainer.train_step()
            trainer.save()
        tensors.append(load_checkpoint(trainer.path)[0])
    whole, _, resumed = tensors
    assert whole.keys() == resumed.keys() and "optimizer.v.R" in whole and "memory.0" in whole
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_what_is_copied_in_a_training_step(place, monkeypatch):
    """Token numbers in, and out the loss and the gradients' norm; of gates their values, their slopes and L0, too."""
    get_backend(GPU)  # opens the driver
    copies = {name: mock.Mock(wraps=getattr(driver(), name)) for name in ("read", "write", "begin_read")}
    for name, copy in copies.items():
        monkeypatch.setattr(driver(), name, copy)
    for gate, expected in ((None, 1), (GateConfig(), 4)):
        _, model = pair(gate=gate, L=1, **DROPOUT)
        ids, targets = text(model.config)
        rule = Optimizer(TrainConfig(lr=0.01), parameter_groups(model.params, 0.01), model.ops)
        objective = LanguageModelling() if gate is None else GateObjective(gate, 1, 3)
        for step in range(2):  # at the first, what stays there is copied, too
            for copy in copies.values():
                copy.reset_mock()
            losses, _, grads = objective(model, ids[step], targets[step], None, np.random.default_rng(4), step)
            norm, factor = model.ops.clipping([*grads.values()], [*losses.values()], max_norm=1.0)
            rule.step(model.params, grads, 0.01, factor)
            model.ops.reading([*losses.values(), norm])()
        sizes = {name: [np.size(call.args[-1]) for call in copy.call_args_list] for name, copy in copies.items()}
        waits = sizes["read"] + sizes["begin_read"]
        assert len(waits) == expected and sum(waits) < 4 * len(model.params) + 20, sizes
        assert max(sizes["write"]) < 400, sizes  # addresses of the arrays that a launch has
