"""Settings that may be changed when a run is resumed, and those that may not."""

import shutil
from pathlib import Path

import pytest
from command import Killed, harmless, run_here, settings, succeed

from tinyprune.config import read_config
from tinyprune.runs import run as stages
from tinyprune.training.checkpoints import load_checkpoint

TRAINING = {"steps": 20, "warmup": 0, "evaluate_every": 5, "checkpoint_every": 5}
SCHEDULES = {"cosine": {}, "constant": {"schedule": "constant"}, "warm-up": {"warmup": 15}}


@pytest.fixture(scope="module")
def begun(book) -> Path:
    """The folder of runs of 20 steps, killed after step 10; tests must not change them."""
    for name, schedule in SCHEDULES.items():
        stop_at(10, "train", book.parent / name, "--corpus", book, *settings(**TRAINING | schedule))
    return book.parent


def stop_at(step: int, *arguments: str | Path) -> None:
    """Run a stage that ends, as if it were killed, just after its checkpoint of this step."""
    original = stages.Trainer.save

    def save(trainer, finished=False):
        original(trainer, finished)
        if trainer.step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stages.Trainer, "save", save)
        run_here(*arguments)


def parameters(path: Path) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in load_checkpoint(path)[0].items()}


@pytest.mark.parametrize(("name", "step"), [("constant", 10), ("warm-up", 10), ("constant", 20)])
def test_without_a_dependence_on_steps_more_of_them_give_the_same_bits(name, step, begun, book, tmp_path):
    """The stage goes on after step 10, or once it is finished."""
    run, often = shutil.copytree(begun / name, tmp_path / "run"), ["--set=train.evaluate_every=10"]
    if step == 20:
        succeed("train", run, "--resume")
        often = []
    said = succeed("train", run, "--resume", "--set=train.steps=30", *often).stderr
    assert "train: 30 steps instead of 20; a cosine of the learning rate and a target of heads depend on" in said
    assert f"going on after step {step}" in said
    whole = tmp_path / "whole"
    options = settings(**TRAINING | SCHEDULES[name] | {"steps": 30})
    succeed("train", whole, "--corpus", book, *options)
    assert parameters(run / "train.safetensors") == parameters(whole / "train.safetensors")
    config = read_config((run / "config.toml").read_text("utf-8"), "config.toml")
    assert (config.train.steps, config.train.evaluate_every) == (30, 10 if often else 5)


def test_fewer_steps_end_at_the_step_reached(begun, tmp_path):
    run = shutil.copytree(begun / "cosine", tmp_path / "run")
    done = succeed("train", run, "--resume", "--set=train.steps=10")
    assert "train: 10 steps instead of 20; " in done.stderr
    metadata = load_checkpoint(run / "train.safetensors")[1]
    assert (metadata["step"], metadata["finished"]) == (10, True)
    succeed("gate", run, "--target-heads=3")


def test_a_stage_waits_for_the_one_before_and_may_have_any_settings_until_it_begins(begun, tmp_path):
    """It also waits if more steps are asked for than were done, as after a kill before the next checkpoint."""
    run = shutil.copytree(begun / "cosine", tmp_path / "run")
    unfinished = f"stage train of {run} is not finished; go on with: tinyprune train {run} --resume"
    assert harmless(2, run, "gate", run, "--lam=0.7") == unfinished
    succeed("train", run, "--resume", "--set=heal.lr=0.5", "--set=gate.lam=0.25")
    written = (run / "config.toml").read_text("utf-8")
    config = read_config(written, "config.toml")
    assert (config.heal.lr, config.gate.lam, config.train.steps) == (0.5, 0.25, 20)
    (run / "config.toml").write_text(written.replace("steps = 20", "steps = 30", 1), "utf-8")
    assert harmless(2, run, "gate", run) == unfinished
    assert "going on after step 20" in succeed("train", run, "--resume").stderr


BEGUN = "since stage train has begun"


@pytest.mark.parametrize(
    ("name", "command", "option", "setting", "reason"),
    [
        ("cosine", "train", "set=train.lr=0.1", "train.lr", BEGUN),
        ("cosine", "train", "set=model.dropout=0", "model.dropout", BEGUN),
        ("cosine", "train", "tokenizer=byte", "data.tokenizer", BEGUN),
        ("cosine", "train", "seed=5", "seed", BEGUN),
        ("cosine", "gate", "set=train.steps=30", "train.steps", BEGUN),
        ("cosine", "train", "set=train.steps=9", "train.steps", "or be at least 10, the step that stage train has"),
        ("finished", "run", "set=train.steps=30", "train.steps", "since stage gate has started from stage train"),
        ("finished", "run", "lam=0.5", "gate.lam", "since stage gate has begun"),
        ("finished", "finetune", "set=heal.log_every=3", "heal.log_every", "since stage finetune is finished"),
        ("finished", "finetune", "set=heal.steps=19", "heal.steps", "or be at least 20"),
    ],
)
def test_what_may_not_change(name, command, option, setting, reason, begun, finished):
    run = begun / name
    said = harmless(2, run, command, run, "--resume", f"--{option}")
    allowed = "steps, evaluate_every, evaluate_tokens, checkpoint_every, log_every of an unfinished stage, "
    where = f"--resume goes on with the settings in {run / 'config.toml'}"
    assert said.startswith(f"{where}; {setting} must stay, {reason}")
    assert f"; what may change is {allowed}more steps of a finished one" in said


def test_an_adopted_baseline_cannot_be_trained_on(finished, tmp_path):
    run = tmp_path / "run"
    stop_at(10, "gate", run, "--from", finished, *settings(**TRAINING)[-11:])
    (run / "gate.safetensors").unlink()
    said = harmless(2, run, "train", run, "--resume", "--set=train.steps=2000")
    assert "train.steps must stay, since the baseline comes from another run" in said
