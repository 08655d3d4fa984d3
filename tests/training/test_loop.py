"""The training loop: it learns, loses nothing when it is stopped, and leaves the last good state when it fails."""

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from command import Killed, contents
from small import small_config, small_model, small_trainer

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.data import Segments
from tinyprune.errors import CheckpointError, Interrupted, NotFiniteError
from tinyprune.method.gates import GateObjective, settle
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.training import loop
from tinyprune.training.checkpoints import load_checkpoint
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import Evaluation
from tinyprune.training.loop import Stopped, Trainer, interruptible
from tinyprune.training.metrics import read_metrics
from tinyprune.training.schedules import learning_rate
from tinyprune.training.step import LanguageModelling

STEPS = 9  # an epoch has 6: the text begins again on the way
DROPOUT = {"dropout": 0.1, "dropout_attention": 0.2, "dropout_embedding": 0.1}
TARGET = GateConfig(controller_lr=0.5)
SOFT = GateConfig(hard=False, lam=0.5)
CONTROLLED = "gates held by a controller"
# kind, optimizer, gates or share of distillation: together they have every kind of state.
VARIANTS = {
    CONTROLLED: ("all-attention", "adamw", TARGET),
    "soft gates": ("transformer-xl", "lamb", SOFT),
    "no gates, no memory": ("transformer", "lamb", None),
    "distillation": ("head networks", "adamw", 0.4),
}


def make(directory: Path, variant: str = "no gates, no memory", before=None, **options) -> Trainer:
    """Make a trainer that goes on from a checkpoint if there is one, and calls `before(model, step)` in each step."""
    kind, optimizer, gate = VARIANTS[variant]
    directory.mkdir(exist_ok=True)
    if isinstance(gate, float):
        share, gate = gate, None
        objective = Distillation(small_model(small_config(kind), dtype=np.float32, seed=1), share)
    else:
        target = 4 if gate is TARGET else None
        objective = LanguageModelling() if gate is None else GateObjective(gate, 4, 6, target=target)
    model = small_model(small_config(kind, **DROPOUT), gate, dtype=np.float32)
    every = {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 1}
    options = {"steps": STEPS, "warmup": 2} | every | options
    if gate is TARGET:
        options["at_end"] = lambda model: settle(model, 4)
    trainer = small_trainer(directory, model, objective, optimizer=optimizer, **options)
    if trainer.path.exists():
        trainer.restore()
    else:
        trainer.log.truncate(0)
    original = trainer.train_step

    def train_step():
        before(trainer.model, trainer.step)
        return original()

    if before is not None:
        trainer.train_step = train_step
    return trainer


def run(trainer: Trainer) -> Trainer:
    with trainer.log:
        trainer.run()
    return trainer


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_in_any_step_and_resumed_it_ends_with_the_same_bits(variant, every, tmp_path):
    """Parameters, optimizer, controller, generator, memory, metrics: the files are equal byte for byte."""
    whole = run(make(tmp_path / "whole", variant, checkpoint_every=every))
    for killed_in in range(STEPS) if every == 1 else (0, 3, 6, 8):
        directory = tmp_path / str(killed_in)

        def die(model, step, killed_in=killed_in):
            if step == killed_in:
                raise Killed

        trainer = make(directory, variant, before=die, checkpoint_every=every)
        with pytest.raises(Killed), trainer.log:
            trainer.run()
        saved = max(killed_in // every * every, killed_in // 2 * 2)  # before each validation, too
        assert trainer.path.exists() == (saved > 0)
        resumed = make(directory, variant, checkpoint_every=every)
        assert resumed.step == saved
        run(resumed)
        assert contents(directory) == contents(tmp_path / "whole")
        for name, x in whole.model.params.items():
            np.testing.assert_array_equal(resumed.model.params[name], x)
        assert resumed.rng.bit_generator.state == whole.rng.bit_generator.state


@pytest.mark.parametrize("where", ["last step", "last validation"])
def test_a_signal_at_the_very_end_is_not_forgotten(where, tmp_path):
    """All is saved, and neither the last validation nor the next stage begins."""

    def send(*_):
        os.kill(os.getpid(), signal.SIGINT)

    def in_last_step(model, step):
        if step == STEPS - 1:
            send()

    trainer = make(tmp_path, before=in_last_step if where == "last step" else None)
    if where == "last validation":
        trainer.at_end = send
    said = rf"^stopped after step {STEPS} of {STEPS} of train; all is saved in {trainer.path}; go on with: "
    with pytest.raises(Interrupted, match=said):
        run(trainer)
    assert not load_checkpoint(trainer.path)[1]["finished"]
    resumed = run(make(tmp_path))
    assert load_checkpoint(trainer.path)[1]["finished"] and resumed.step == STEPS
    whole = run(make(tmp_path / "whole"))
    assert contents(tmp_path / "whole").items() <= contents(tmp_path).items()
    assert whole.step == STEPS


@pytest.mark.parametrize("step", [4, STEPS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_a_stop_within_a_validation_is_at_once_and_loses_nothing(number, step, tmp_path):
    """A signal, or (None) a kill; the validation is made after the resume, and its line is in the log."""
    whole = run(make(tmp_path / "whole", CONTROLLED))
    trainer = make(tmp_path / "stopped", CONTROLLED)
    validate, went_on = trainer.validate, []

    def stopped(model):
        if trainer.step == step:
            if number is None:
                raise Killed
            os.kill(os.getpid(), number)
            went_on.append(step)
        return validate(model)

    trainer.validate = stopped
    error, said = (Interrupted, f"^stopped after step {step} of {STEPS}") if number else (Killed, None)
    with pytest.raises(error, match=said):
        run(trainer)
    assert not went_on and load_checkpoint(trainer.path)[1]["step"] == step
    run(make(tmp_path / "stopped", CONTROLLED))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole") and whole.step == STEPS


def test_a_signal_after_the_loop_has_last_asked_is_not_forgotten_either():
    """Before a validation it ends that; after the last step it does what it did before."""
    with pytest.raises(Stopped), interruptible() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with signals.at_once():
            pytest.fail("the validation has begun")
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN])
def test_afterwards_signals_do_what_they_did_before(hangup, tmp_path):
    """And a hangup that is ignored, as by nohup, stays so."""
    numbers, during = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), []
    earlier = signal.signal(signal.SIGHUP, hangup)
    before = [signal.getsignal(number) for number in numbers]
    try:
        run(make(tmp_path, before=lambda model, step: during.extend(map(signal.getsignal, numbers))))
        assert [signal.getsignal(number) for number in numbers] == before
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert not set(during[:2]) & set(before)
    assert (during[2] is signal.SIG_IGN) == (hangup is signal.SIG_IGN)


def test_never_means_never(tmp_path, capfd):
    """No validation, not even the last one: a line without it, and none in the log."""
    trainer = make(tmp_path, CONTROLLED, evaluate_every=0)
    trainer.validate = None
    run(trainer)
    assert re.search(rf"train: step {STEPS} of {STEPS}, training loss \d\.\d+, 4 heads open\n", capfd.readouterr().err)
    assert {record["split"] for record in read_metrics(trainer.log.path)} == {"train"}


def test_in_another_thread_it_trains_without_signals(tmp_path):
    trainer = make(tmp_path)
    thread = threading.Thread(target=run, args=[trainer])
    thread.start()
    thread.join()
    assert load_checkpoint(trainer.path)[1]["finished"]


def test_a_learning_rate_that_is_far_too_high(tmp_path):
    """A step can leave the range of float32 although loss and gradient were fine."""
    trainer = make(tmp_path, lr=1e39, warmup=0, clip=0.0, evaluate_every=0)
    with pytest.raises(NotFiniteError, match="is not finite after step 1; no checkpoint has been saved yet"):
        run(trainer)
    assert not trainer.path.exists()


OTHERS = [({"D": 24}, "train", r"does not fit the configured model at embedding: needed \(11")]
OTHERS += [({}, "finetune", "is of stage 'train', not 'finetune'"), ({}, "train", r"optimizer state .*log_alpha")]


@pytest.mark.parametrize(("options", "stage", "said"), OTHERS)
def test_checkpoints_of_something_else_are_refused(options, stage, said, tmp_path):
    run(make(tmp_path / "run", CONTROLLED))
    before = contents(tmp_path / "run")
    other = small_trainer(tmp_path, small_model(small_config(**options), dtype=np.float32))
    other.path, other.stage = tmp_path / "run" / "train.safetensors", stage
    with other.log, pytest.raises(CheckpointError, match=said):
        other.restore()
    assert contents(tmp_path / "run") == before


def test_lines_of_the_log(tmp_path):
    trainer = make(tmp_path, CONTROLLED, steps=10, log_every=3, evaluate_every=4)
    run(trainer)
    records = read_metrics(tmp_path / "metrics.jsonl")
    described = ["heads_open", "log_alpha"]
    steps = [(3, "train"), (4, "valid"), (6, "train"), (8, "valid"), (9, "train")]
    steps += [(10, "train"), (10, "valid")]
    assert [(r["step"], r["split"]) for r in records] == steps
    for record in records:
        if record["split"] == "train":
            assert list(record) == ["stage", "step", "split", "loss", "l0", "lam", "lr", "grad_norm", *described]
            assert record["lr"] == learning_rate(trainer.config, record["step"] - 1)
            assert record["grad_norm"] > 0
        else:
            assert list(record) == ["stage", "step", "split", "loss", "bits_per_character", *described]
    # The last line is about the model that was saved, after `at_end` has settled its gates.
    last, result = records[-1], trainer.validate(trainer.model)
    assert last["heads_open"] == 4
    gates = [trainer.model.params[f"layers.{i}.log_alpha"] for i in range(2)]
    assert last["log_alpha"] == [x.tolist() for x in gates]
    assert last["loss"] == result.nats_per_token
    assert last["bits_per_character"] == result.bits_per_character


@pytest.mark.parametrize(("variant", "described"), [("no gates, no memory", ""), (CONTROLLED, ", 6 heads open")])
def test_each_validation_is_a_line(variant, described, tmp_path, capfd, monkeypatch):
    """With the log's losses, and speed and time left since the last line. A step takes 2 s, a validation 10 s."""
    now = [100.0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def validate(model):
        wait(10)
        return Evaluation(1.0, 10, 10)

    run(make(tmp_path, variant, before=lambda model, step: wait(2), evaluate_every=3, validate=validate))
    losses = {r["step"]: r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "train"}
    lines = capfd.readouterr().err.splitlines()
    for line, step, left in zip(lines, (3, 6, 9), (", 32 s left", ", 16 s left", ""), strict=True):
        said = f"tinyprune: train: step {step} of 9, training loss {losses[step]:.3f}, "
        said += "validation loss 1.000, 1.443 bits "
        heads = ", 4 heads open" if described and step == 9 else described
        assert line == f"{said}per character{heads}, 5 tokens a second{left}"


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("lamb", marks=pytest.mark.slow)])
def test_a_short_text_is_learnt_by_heart(optimizer, tmp_path):
    """48 tokens are repeated, so a few tokens determine the next one."""
    tokens = np.tile(np.random.default_rng(0).integers(0, 11, 48), 20)
    config = ModelConfig(V=11, L=2, D=32, H=4, N=8, T=12, M=12)
    model = Transformer(config, init_parameters(config, np.random.default_rng(0)))
    options = {"steps": 250, "B": 4, "lr": 0.02, "warmup": 10, "evaluate_every": 0, "optimizer": optimizer}
    run(small_trainer(tmp_path, model, tokens=tokens, **options))
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[0] > 1.5 and max(losses[-3:]) < 0.1
    ids, targets, _ = Segments(tokens, 4, 12).batch(0)
    likeliest = model.log_p(ids).argmax(-1)
    assert (likeliest == targets)[:, 6:].mean() > 0.95
