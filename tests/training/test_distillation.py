"""Distillation: the objective's gradients, what the teacher has read, a run that heals by it, and refusals."""

import tracemalloc

import numpy as np
import pytest
from command import run_here
from small import small_config, small_model

from tinyprune.config import RunConfig
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.gradcheck import assert_gradients
from tinyprune.model.transformer import Transformer
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.distillation import Distillation

TEXT = np.random.default_rng(2).integers(0, 11, (2, 2, 6))  # segments, streams, T + 1
IDS, TARGETS = TEXT[..., :-1], TEXT[..., 1:]


def read_both(objective, model: Transformer) -> tuple:
    """The losses and gradients of the second segment, after the first."""
    _, memory, _ = objective(model, IDS[0], TARGETS[0], None, None, 0)
    losses, _, grads = objective(model, IDS[1], TARGETS[1], memory, None, 1)
    return losses["loss"], grads


@pytest.mark.parametrize("kind", ["all-attention", "head networks", "transformer"])
def test_the_loss_is_its_formula_and_the_gradient_that_of_the_loss(kind):
    """The student has lost heads; its teacher has read the first segment, too."""
    heads = {"heads": (2, 1), "head_ids": ((0, 2), (1,))}
    student = small_model(small_config(kind, **heads))
    teacher = small_model(small_config(kind), seed=1)
    loss, grads = read_both(Distillation(teacher, 0.3), student)
    _, memory, _ = teacher.forward(IDS[0])
    t = teacher.log_probabilities(teacher.forward(IDS[1], memory)[0])
    _, own, _ = student.forward(IDS[0])

    def forward(*arrays):
        varied = Transformer(student.config, dict(zip(student.params, arrays, strict=True)))
        log_p = varied.log_probabilities(varied.forward(IDS[1], own)[0])
        surprise = -np.take_along_axis(log_p, TARGETS[1][..., None], -1).mean()
        return 0.7 * surprise + 0.3 * (np.exp(t) * (t - log_p)).sum(-1).mean(), None

    assert loss == pytest.approx(forward(*student.params.values())[0], rel=1e-12)

    def backward(dout, _):
        return tuple(dout * grads[name] for name in student.params)

    names = list(student.params)
    assert_gradients(forward, backward, *student.params.values(), argument_names=names, directions=1)


def test_a_run_heals_by_it_and_does_not_without(finished, tmp_path):
    """Twice the same bits, and other ones than without distillation."""
    for name, share in (("a", 0.5), ("b", 0.5), ("c", 0)):
        run = tmp_path / name
        run.mkdir()
        for path in finished.iterdir():
            if path.is_file() and path.name != "finetune.safetensors":
                (run / path.name).write_bytes(path.read_bytes())
        done = run_here("finetune", run, f"--set=heal.distill={share}", "--backend=numpy")
        assert done.returncode == 0, done.stderr
    a, b, c = (tmp_path / name / "finetune.safetensors" for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    (a, _), (c, _) = (load_checkpoint(path) for path in (a, c))
    assert a.keys() - c.keys() == {"objective.memory.0", "objective.memory.1"}
    assert all((a[name] != c[name]).any() for name in c if name.startswith("params."))


def test_a_step_takes_little_more_than_both_predictions_and_a_checkpoint_nothing(tmp_path):
    config = small_config("llama", V=4000, T=30)
    student, teacher = (small_model(config, seed=seed) for seed in (0, 1))
    ids = np.random.default_rng(0).integers(0, 4000, (2, 8, 30))
    tracemalloc.start()
    grads = Distillation(teacher, 0.5)(student, *ids, None, None, 0)[2]
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    save_checkpoint(tmp_path / "c.safetensors", grads, {})
    assert peak < 3.5 * ids[0].size * 4000 * 8 and tracemalloc.get_traced_memory()[1] - now < 1e5
    tracemalloc.stop()


def test_what_cannot_be_is_refused():
    adaptive = small_model(small_config(cutoffs=(4, 7), div_value=2))
    with pytest.raises(UsageError, match=r"heal.distill must be 0 for an adaptive softmax"):
        Distillation(adaptive, 0.5)
    with pytest.raises(UsageError, match=r"train.distill must be 0, since only heal has a larger model; got 0.5"):
        RunConfig.from_dict({"train": {"distill": 0.5}})
    with pytest.raises(CheckpointError, match=r"another setting of heal.distill"):
        Distillation(small_model(small_config()), 0.5).load_state({"lam": np.zeros(2)})
