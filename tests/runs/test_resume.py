"""Stopped at any moment, by SIGKILL, Ctrl-C or SIGTERM, a run goes on to the same bits."""

import contextlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import command as commands
import pytest
from command import (
    LASTING,
    MODEL,
    STAGES,
    TRAINING,
    die_in_write,
    harmless,
    run_here,
    settings,
    start,
    succeed,
    wait_until,
)

from tinyprune.cli import parser
from tinyprune.method import texts
from tinyprune.runs import run as stages
from tinyprune.training import loop

INTERRUPTED = "tinyprune: interrupted; every checkpoint is whole, --resume goes on from the last"
# 40 steps of about 3 ms in each stage, a checkpoint after every other one.
OPTIONS = settings(steps=40, checkpoint_every=2)
GATE_OPTIONS = ["--target-heads=3"]


@pytest.fixture(scope="module")
def reference(book) -> Path:
    """Make a run that nothing interrupts; tests must not change it."""
    directory = book.parent / "reference"
    commands.do_stages(directory, book, OPTIONS, GATE_OPTIONS)
    return directory


@pytest.fixture
def copy(reference, tmp_path) -> Path:
    return shutil.copytree(reference, tmp_path / "copy")


def records(directory: Path) -> list[dict]:
    """Read the complete lines of a log that may be growing."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def being_written(directory: Path) -> set[tuple[str, int]]:
    """Find files that are partly written: their names and the times of the latest writes."""
    found = set()
    for path in directory.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def about_to_validate(directory: Path) -> bool:
    """Return whether the log ends with a step that is validated, but not with its validation."""
    last = (records(directory) or [{"step": 1, "split": ""}])[-1]
    return last["step"] % TRAINING["evaluate_every"] == 0 and last["split"] == "train"


def assert_same(directory: Path, reference: Path, *names: str) -> None:
    """Check that these files, by default all that last, equal the reference's, and that no temporary file is left."""
    for name in names or LASTING:
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.slow
def test_forty_kills_at_random_moments_change_no_bit(book, tmp_path):
    """Every process but the last of each run is killed: as it starts, within a step, a validation or a write."""
    given = ["--corpus", book, *OPTIONS, *GATE_OPTIONS]
    quick = "--backend=numpy"  # which starts in half of the time
    reference = tmp_path / "reference"
    succeed("run", reference, quick, *given)
    rng = random.Random(2110)
    kills, writes, validations, landed = 0, 0, 0, set()
    for number in itertools.count():
        directory = tmp_path / f"run{number}"
        killed = True
        while killed:
            begun = (directory / "config.toml").exists()
            options = ["--resume"] if begun else given
            before, process = being_written(directory), start("run", directory, quick, *options)
            # soon after the start, after some steps, when the write after them has begun, or before a validation's line
            moment = rng.choice(["starting", "stepping", "validating", "writing", "writing"])
            if moment == "starting":
                time.sleep(rng.uniform(0, 0.25))
            else:
                goal = len(records(directory)) + rng.randint(1, 16)
                wait_until(lambda path=directory, goal=goal: len(records(path)) >= goal, process)
            if moment == "stepping":
                time.sleep(rng.uniform(0, 0.005))
            if moment == "validating":
                wait_until(lambda path=directory: about_to_validate(path), process)
            if moment == "writing":
                wait_until(lambda path=directory, before=before: being_written(path) - before, process)
            process.kill()
            _, said = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), said
            killed = process.returncode != 0
            kills += killed
            writes += bool(killed and being_written(directory) - before)
            validations += bool(killed and about_to_validate(directory))
            landed |= {record["stage"] for record in records(directory)[-1:] if killed}
        assert_same(directory, reference)
        assert (directory / "report.md").exists()
        if kills >= 40 and landed.issuperset({"train", "gate", "finetune"}):
            break
    print(f"{kills} kills in {number + 1} runs, {writes} of them within a write")
    print(f"{validations} before a validation's end")
    assert writes >= 3 and validations >= 3


def forget_from(directory: Path, stage: str) -> None:
    for later in STAGES[STAGES.index(stage) :]:
        (directory / f"{later}.safetensors").unlink()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_died_goes_on_alone(stage, reference, copy):
    """It dies twice, each time in the middle of writing its third checkpoint, or the only one that removal writes."""
    forget_from(copy, stage)
    module = stages if stage == "prune" else loop
    for _ in range(2):
        die_in_write(module, 1 if stage == "prune" else 3, stage, copy, "--resume")
    again = succeed(stage, copy, "--resume").stderr
    assert stage == "prune" or f"tinyprune: {stage}: going on after step 7\n" in again
    assert_same(copy, reference, f"{stage}.safetensors")
    log, whole_log = ((directory / "metrics.jsonl").read_bytes() for directory in (copy, reference))
    assert whole_log.startswith(log) and (stage != "finetune" or log == whole_log)


def send_in_step(monkeypatch, stage: str, step: int, *numbers: int) -> None:
    original = loop.Trainer.train_step

    def train_step(trainer):
        for number in numbers if (trainer.stage, trainer.step) == (stage, step - 1) else ():
            os.kill(os.getpid(), number)
        return original(trainer)

    monkeypatch.setattr(loop.Trainer, "train_step", train_step)


@pytest.mark.parametrize(
    ("command", "stage", "number", "apart"),
    [
        ("train", "train", signal.SIGINT, False),
        ("train", "train", signal.SIGTERM, False),
        ("gate", "gate", signal.SIGTERM, False),
        ("run", "gate", signal.SIGINT, False),
        *(pytest.param("run", "gate", x, True, marks=pytest.mark.slow) for x in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_polite_stop_says_how_to_go_on(command, stage, number, apart, reference, book, tmp_path, monkeypatch):
    """The signal comes from this process in the fifth step, or from another (`apart`) after it."""
    directory = tmp_path / "my run"  # to be quoted
    given = ["--corpus", book, *OPTIONS, *(GATE_OPTIONS if command == "run" else [])]
    if command == "gate":
        shutil.copytree(reference, directory)
        forget_from(directory, "gate")
        given = ["--resume"]
    if apart:
        process = start(command, directory, *given)
        wait_until(lambda: any(r["stage"] == stage and r["step"] >= 5 for r in records(directory)[-1:]), process)
        process.send_signal(number)
        said, status = process.communicate()[1], process.returncode
    else:
        with monkeypatch.context() as patched:
            send_in_step(patched, stage, 5, number)
            done = run_here(command, directory, *given)
        said, status = done.stderr, done.returncode
    assert status == 130, said
    last = records(directory)[-1]
    assert last["stage"] == stage and (apart or last["step"] == 5)
    message, to_type = said.splitlines()[-1].split("; go on with: ")
    saved, step = directory / f"{stage}.safetensors", last["step"]
    stopped = f"tinyprune: stopped after step {step} of 40 of {stage}"
    assert message == f"{stopped}; all is saved in {saved}"
    assert shlex.split(to_type) == ["tinyprune", command, str(directory), "--resume"]
    again = succeed(*shlex.split(to_type)[1:])
    assert f"tinyprune: {stage}: going on after step {step}\n" in again.stderr
    assert_same(directory, reference, *([] if command == "run" else [saved.name]))


def test_a_second_ctrl_c_does_not_wait_for_the_step(copy, reference, monkeypatch, capfd):
    forget_from(copy, "gate")
    send_in_step(monkeypatch, "gate", 1, signal.SIGINT, signal.SIGINT)
    done = run_here("gate", copy, "--resume")
    assert "stopping after this step; once more stops at once" in capfd.readouterr().err
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == INTERRUPTED
    assert not (copy / "gate.safetensors").exists()
    assert_same(copy, reference, "train.safetensors")


@pytest.mark.parametrize("command", ["gradcheck", "bench", "eval", "generate", "describe", "experiment"])
def test_ctrl_c_speaks_of_checkpoints_only_where_there_are_some(command, monkeypatch):
    interrupted = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setitem(parser.COMMANDS, command, (interrupted, "an interrupted command"))
    given = {"bench": ["step"], "generate": ["run", "--prompt=1"], "eval": ["run"]}
    given["experiment"] = ["tradeoff"]
    done = run_here(command, *given.get(command, []))
    assert (done.returncode, done.stderr) == (130, "tinyprune: interrupted\n")


WORK = """
import signal, sys
from tinyprune.cli import main, parser

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def work(arguments):
    last = Last()
    del last
    print("went on")

parser.COMMANDS["train"] = work, "work"
sys.argv = ["tinyprune", "train", "run"]
sys.exit(main())
"""


def test_python_loses_no_stop_that_comes_while_it_frees_an_object():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED}\n")


@pytest.mark.slow
def test_stops_at_random_moments_end_a_run_at_once_and_it_goes_on(book, tmp_path):
    """In training and validations, and the last one in the report."""
    rng, run = random.Random(7), tmp_path / "run"
    given = ["--corpus", book, *settings(MODEL | {"D": 64, "T": 64}, B=4), "--target-heads=3"]
    for stop in range(8):
        process, goal = start("run", run, *given), len(records(run)) + rng.randint(1, 12)
        if stop == 7:
            wait_until(lambda process=process: "report:" in process.stderr.readline(), process)
            time.sleep(rng.uniform(0, 2))
        else:
            wait_until(lambda goal=goal: len(records(run)) >= goal, process)
            time.sleep(rng.uniform(0, 0.05))
        process.send_signal((signal.SIGINT, signal.SIGTERM)[stop % 2])
        said = process.communicate(timeout=20)[1].splitlines()
        assert process.returncode == 130, said
        assert said[-1] == INTERRUPTED or "; go on with: tinyprune run" in said[-1], said
        assert all(line.startswith("tinyprune: ") for line in said if line), said
        given = ["--resume"]
    succeed("run", run, "--resume")


@pytest.mark.parametrize("torn", [b'{"stage": "finetune", "st', b"\0\0\0\0", b'{"stage": "finetune", "step": 99}\n'])
def test_what_was_logged_after_the_last_checkpoint_is_dropped(torn, reference, copy, book):
    """After a power cut part of a file may be written. The run's own settings may be given again."""
    (copy / "finetune.safetensors").unlink()
    whole = (reference / "finetune.safetensors").read_bytes()
    (copy / "finetune.safetensors.tmp").write_bytes(whole[:5000])
    with (copy / "metrics.jsonl").open("ab") as log:
        log.write(torn)
    succeed("finetune", copy, "--resume", "--corpus", book, *OPTIONS, "--set=choose.target_heads=3")
    assert_same(copy, reference)


def test_a_finished_run_is_only_reported(copy):
    times = {name: (copy / name).stat().st_mtime_ns for name in LASTING}
    for stage in STAGES:
        assert succeed(stage, copy, "--resume").stderr == f"tinyprune: {stage}: already finished\n"
    lines = succeed("run", copy, "--resume").stdout.splitlines()
    assert lines[0].startswith("stage ") and "bits per character" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == list(STAGES)
    assert {name: (copy / name).stat().st_mtime_ns for name in LASTING} == times
    assert (copy / "report.md").exists()
    # With more steps of its last stage only that one goes on.
    more = succeed("run", copy, "--resume", "--set=heal.steps=45")
    assert "finetune: going on after step 40\n" in more.stderr
    assert (copy / "gate.safetensors").stat().st_mtime_ns == times["gate.safetensors"]


def test_overwrite_keeps_the_stages_before_and_starts_anew(reference, copy, book, tmp_path):
    """It does so with another text, with other settings and over a broken checkpoint: no old one is read."""
    succeed("gate", copy, "--overwrite", "--target-heads=1")
    left = {path.name for path in copy.glob("*.safetensors*")}
    assert left == {"train.safetensors", "gate.safetensors"}
    succeed("gate", copy, "--overwrite", "--target-heads=3")
    assert_same(copy, reference, "train.safetensors", "gate.safetensors")
    (copy / "train.safetensors").write_bytes(b"broken")
    other = tmp_path / "other.txt"
    other.write_text("Ж is not in the book. " * 100, "utf-8")
    succeed("train", copy, "--overwrite", "--corpus", other, "--seed=3", "--set=model.D=8")
    assert [path.name for path in copy.glob("*.safetensors*")] == ["train.safetensors"]
    assert {record["stage"] for record in records(copy)} == {"train"}
    succeed("train", copy, "--overwrite", "--corpus", book, *OPTIONS, "--seed=0")
    assert_same(copy, reference, "train.safetensors")


def test_every_stage_reads_on_after_the_one_before(copy, tmp_path, monkeypatch):
    """With another B, which cuts the text elsewhere, after as much of it."""
    reads, segments = [], texts.Segments

    def spy(tokens, B, T, read):
        reads.append(read)
        return segments(tokens, B, T, read)

    monkeypatch.setattr(texts, "Segments", spy)
    for stage, options, expected in (
        ("gate", ["--target-heads=3"], 40),
        ("prune", [], 0),
        ("finetune", [], 80),
        ("finetune", ["--set=heal.B=3"], 80 * 2 // 3),
    ):
        reads.clear()
        assert run_here(stage, copy, "--overwrite", *options).returncode == 0
        assert max(reads, default=0) == expected
    reads.clear()
    adopted = tmp_path / "adopted"
    done = run_here("gate", adopted, "--from", copy, *OPTIONS, "--target-heads=3")
    assert done.returncode == 0
    assert max(reads) == 40


REFUSED = [
    ("run", "--target-heads=5", "choose.target_heads must be at most the model's 4 heads, got 5"),
    ("run", "--set=heal.B=999", "one step needs B · T [+] 1"),
    ("gate", "--set=train.lr=1", r"stage train was done with other settings \[train\]"),
    ("finetune", "--set=gate.beta=0.5", r"stage gate was done with other settings \[gate\]"),
    ("gate", "--from=nowhere.safetensors", "there is no checkpoint nowhere.safetensors"),
]
DONE = "^RUN has stage finetune already: add --resume to go on.*--overwrite to start anew"
REFUSED += [(command, None, DONE) for command in ("run", *STAGES)]


@pytest.mark.parametrize(("command", "wrong", "complaint"), REFUSED)
def test_what_is_refused_leaves_the_run_as_it_is(command, wrong, complaint, reference):
    options = ["--overwrite", wrong] if wrong else []
    said = harmless(1 if "--from=" in str(wrong) else 2, reference, command, reference, *options)
    assert re.search(complaint.replace("RUN", re.escape(str(reference))), said), said


def test_another_baseline_is_not_taken_before_all_that_can_be_checked_is(reference, book, tmp_path):
    """With --from a baseline replaces an adopted one, but never one that the run has trained itself."""
    other, run = tmp_path / "other", tmp_path / "run"
    succeed("train", other, "--corpus", book, *settings({"L": 1, "D": 8, "H": 4}, steps=2))
    short = ["--set=gate_train.steps=2", "--set=gate_train.B=2"]
    for directory in (other, run):
        harmless(2, tmp_path, "gate", directory, "--from", reference, "--target-heads=5", *short)
    harmless(2, tmp_path, "gate", other, "--from", reference, *short)
    succeed("gate", run, "--from", reference, *short)
    harmless(2, tmp_path, "gate", run, "--from", other, "--overwrite", "--target-heads=5", *short)
    succeed("gate", run, "--from", other, "--overwrite", "--target-heads=4", *short)
    succeed("prune", run)
    assert "L = 1\n" in re.sub(" *#.*", "", (run / "config.toml").read_text("utf-8"))
