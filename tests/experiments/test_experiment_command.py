"""`tinyprune experiment`, as one types it: tables, pictures and a report; it goes on, and refuses nonsense."""

import json
import os
import signal
import subprocess

import pytest
from command import MODEL, contents, refused, start, succeed, wait_until, write_text

from tinyprune.experiments.results import read_csv

SMALL = {"train.steps": 12, "gate_train.steps": 8, "finetune.steps": 4}
SMALL |= dict.fromkeys(("train.B", "gate_train.B", "finetune.B"), 2)


def options(**more) -> list[str]:
    settings = {f"model.{k}": v for k, v in MODEL.items()} | SMALL | {k.replace("__", "."): v for k, v in more.items()}
    return [f"--set={key}={value}" for key, value in settings.items()]


PICTURES = {
    "tradeoff": {"tradeoff", "kept", "agreement", "gate_paths", "attention"},
    "ablation": {"ablation"},
    "architecture": {"architecture", "inference"},
}


@pytest.mark.slow
@pytest.mark.parametrize("study", PICTURES)
def test_a_study_ends_with_tables_pictures_and_a_report(study, tmp_path):
    corpus = write_text(tmp_path)
    given = [study, "--directory", tmp_path / "study", "--quick", "--corpus", corpus, *options()]
    given += ["--backend", "numpy", "--jobs", "2"]
    done = succeed("experiment", *given, "--json")
    rows = json.loads(done.stdout)
    assert {row["study"] for row in rows} == {study} and {row["seed"] for row in rows} == {10, 11}
    assert all(row["bits_per_character"] > 0 and row["ms_per_1k_tokens"] > 0 for row in rows)
    assert len(read_csv((tmp_path / "study" / "results.csv").read_text())) == len(rows)
    about = json.loads((tmp_path / "study" / "study.json").read_text())
    assert about["seeds"] == [10, 11] and about["config"]["train"]["steps"] == 12 and "Python" in about["machine"]
    pictures = {path.stem for path in (tmp_path / "study" / "plots").glob("*.png")}
    report = (tmp_path / "study" / "README.md").read_text()
    assert pictures == PICTURES[study] and all(f"](plots/{name}.png)" in report for name in pictures)

    kept = (tmp_path / "study" / "cells.jsonl").read_bytes()
    again = succeed("experiment", *given)
    assert "0 of them or of their baselines still to be trained" in again.stderr
    assert (tmp_path / "study" / "cells.jsonl").read_bytes() == kept
    assert "bits per character" in again.stdout.splitlines()[0]


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    corpus = write_text(tmp_path)
    given = ["tradeoff", "--quick", "--corpus", corpus, "--backend", "numpy", "--jobs", "2"]
    given += ["--methods", "random,gates"]
    given += options(gate_train__steps=60)
    succeed("experiment", *given, "--directory", tmp_path / "whole")
    killed = start("experiment", *given, "--directory", tmp_path / "killed", start_new_session=True)
    log = tmp_path / "killed" / "cells.jsonl"
    wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = log.read_bytes()
    done = succeed("experiment", *given, "--directory", tmp_path / "killed")
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert "8 models" in done.stderr

    def numbers(directory) -> list[dict]:
        rows = read_csv((directory / "results.csv").read_text())
        return [{k: v for k, v in row.items() if k != "ms_per_1k_tokens"} for row in rows]

    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_their_parent_and_ctrl_c_says_how_to_go_on(tmp_path):
    corpus = write_text(tmp_path)
    given = [
        "tradeoff",
        "--quick",
        "--corpus",
        corpus,
        "--backend",
        "numpy",
        "--jobs",
        "2",
        "--methods",
        "random,gates",
    ]
    given += ["--directory", tmp_path / "study", *options(gate_train__steps=100_000)]
    log = tmp_path / "study" / "cells.jsonl"

    def at_work(process) -> bool:
        return log.exists() and len(children(process.pid)) >= 2

    for sign, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start("experiment", *given)
        wait_until(lambda process=process: at_work(process), process)
        workers = children(process.pid)
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
        assert process.returncode == status
        assert sign == signal.SIGKILL or ("are kept in" in said.splitlines()[-1] and "same command" in said)
        wait_until(lambda workers=workers: not any(alive(pid) for pid in workers), process)
        assert not any(alive(pid) for pid in workers)


def children(pid: int) -> list[int]:
    """Processes that another has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--shares", "half"], "--shares takes numbers with commas between them, got 'half'"),
        (["--shares", "1.5"], "shares must be numbers from 0 to 1, got [1.5]"),
        (["--methods", "magic"], "methods must be among random, magnitude"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--set", "data.tokenizer=word", "--set", "data.vocabulary=50"], "need a tokenizer without <unk>"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"], "--jobs is for this machine's processes"),
        (["--preset", "enormous"], "no preset or .toml file 'enormous'"),
        (["--backend", "abacus"], "backend must be one of"),
    ],
)
def test_bad_use_is_one_line(given, message, tmp_path):
    assert message in refused(2, "experiment", "tradeoff", "--directory", tmp_path / "study", *given)
    assert contents(tmp_path) == {}
