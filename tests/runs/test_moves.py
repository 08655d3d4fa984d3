"""Runs and texts that were moved or copied, and two processes in one run."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from command import harmless, refused, settings, start, succeed, wait_until, write_text

from tinyprune.runs.directory import RunDirectory
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint

COMMANDS = {"eval": [], "heads": ["--tokens=40"], "gate": ["--overwrite"], "run": ["--resume"]}
COMMANDS["compare"] = ["--methods=random", "--shares=0.8", "--parts=heads", "--tokens=40"]
COMMANDS["compare"] += ["--set=heal.steps=1", "--backend=numpy"]


@pytest.fixture
def moved(finished, tmp_path) -> Path:
    """A run with its text beside it, in a new folder: the old text is gone."""
    folder = tmp_path / "another machine"
    folder.mkdir()
    for path in (finished / "config.toml", *finished.glob("*.safetensors")):
        content = path.read_bytes()
        if path.suffix == ".toml":
            content = re.sub(rb'corpus = ".*book.txt"', b'corpus = "/gone/book.txt"', content)
        (folder / path.name).write_bytes(content)
    for path in folder.glob("*.safetensors"):
        tensors, metadata = load_checkpoint(path)
        metadata.pop("from", None)
        metadata["data"] |= {"corpus": "/gone/book.txt"}
        save_checkpoint(path, tensors, metadata)
    shutil.copy(finished / "metrics.jsonl", folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_finds_its_text_beside_it_or_where_one_says(command, moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Compare measures times, which only a process of its own does.
    given, started = COMMANDS[command], {"env": {}} if command == "compare" else {}
    said = refused(2, command, moved, *given)
    assert said.startswith("the text 'book.txt' with which the model was trained (sha256 ")
    assert "/gone" in said
    shutil.copy(write_text(tmp_path, "elsewhere.txt"), tmp_path / "renamed.txt")
    succeed(command, moved, "--corpus=renamed.txt", *given, **started)
    if command != "run":  # which now knows where the text is
        write_text(moved)
        succeed(command, moved, *given, **started)
    assert ("renamed.txt" in (moved / "config.toml").read_text()) == (command in ("run", "gate"))


def test_another_text_is_evaluated_if_one_asks_for_it(finished, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("they see heads; " * 400, "utf-8")
    done = succeed("eval", finished, "--corpus", other, "--json")
    assert "other.txt is another text than the model was trained on" in done.stderr
    own = json.loads(succeed("eval", finished, "--json").stdout)
    assert json.loads(done.stdout)[0]["bits_per_character"] != own[0]["bits_per_character"]
    assert "is not at" in harmless(2, finished, "gate", finished, "--overwrite", "--corpus", other)


def test_one_process_writes_a_run(book, tmp_path):
    """The other is told who is at work; readers are not kept out."""
    run = tmp_path / "run"
    options = settings(steps=100_000, checkpoint_every=5)
    first = start("train", run, "--corpus", book, "--backend=numpy", *options)
    try:
        wait_until((run / "train.safetensors").exists, first)
        for command in (["train", "--overwrite"], ["train", "--resume"], ["gate"], ["run", "--resume"]):
            said = refused(2, *command[:1], run, *command[1:])
            assert said.startswith(f"another process ({first.pid} on ")
            assert f"is at work in {run}; wait" in said
        succeed("eval", run, "--backend=numpy")
    finally:
        first.kill()
        first.communicate()
    with RunDirectory(run).locked():  # a lock ends with its process
        assert (run / ".lock.by").read_text().startswith(f"{os.getpid()} on ")
    assert not (run / ".lock.by").exists()


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    refused(2, "train", tmp_path / "new" / "run", "--corpus=nowhere.txt")
    assert not (tmp_path / "new" / "run").exists()


@pytest.mark.parametrize(("options", "what"), [(["--seed=5"], "seed"), (["--set=train.B=3"], "checkpoint")])
def test_stages_that_do_not_follow_from_each_other_are_refused(options, what, book, finished, tmp_path):
    other, run = tmp_path / "other", shutil.copytree(finished, tmp_path / "run")
    succeed("train", other, "--corpus", book, *settings(), *options)
    shutil.copy(other / "train.safetensors", run)
    said = harmless(2, run, "run", run, "--resume")
    broken = f"stage gate of {run} does not follow from its stage train"
    assert said.startswith(f"{broken}: it began with another {what}; ")
    shutil.copy(finished / "train.safetensors", run)
    report = (run / "report.md", succeed("run", run, "--resume"))[0].read_text()
    assert re.search(r"by sha256 \(each began with the one before\): train [0-9a-f]{12}, gate ", report)
