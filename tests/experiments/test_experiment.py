"""`tinyprune experiment`, as it is typed: it plans, computes, continues after a kill, and refuses nonsense."""

import dataclasses
import json
import os
import signal
import subprocess

import pytest
from command import MODEL, contents, refused, start, succeed, wait_until, write_text
from toy import STEPS, toy_study, without_times

from tinyprune.errors import UsageError
from tinyprune.experiments.methods import COMPARED
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.tradeoff import make_tradeoff


def given(tmp_path, **steps) -> list[str]:
    """The arguments of a study of small models, with two seeds; `steps` of stages, if others than `STEPS`."""
    settings = {f"model.{k}": v for k, v in MODEL.items()}
    settings |= {f"{stage}.{k}": v for stage, n in (STEPS | steps).items() for k, v in (("steps", n), ("B", 2))}
    start = ["experiment", "tradeoff", "--quick", "--corpus", write_text(tmp_path), "--backend", "numpy"]
    return [*start, "--methods", "random,gates", *(f"--set={key}={value}" for key, value in settings.items())]


def rows_of(directory) -> list[dict]:
    return [without_times(row) for row in read_csv((directory / "results.csv").read_text())]


def test_all_cells_of_a_study_are_different(tmp_path):
    cells = toy_study(tmp_path, shares=(0.5, 0.25)).cells
    assert len(cells) == len({(cell.method, cell.heads, cell.config.seed) for cell in cells})
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.config.seed for cell in cells} == {0, 1}


def test_the_models_of_a_study_were_trained_alike_and_end_at_a_low_rate(tmp_path):
    study, trained = toy_study(tmp_path, shares=(0.5,), methods=COMPARED), {}
    for cell in study.cells:
        method, stages = cell.definition, list(cell.definition.heal)
        if method.by == "gates" and not method.rewound:
            stages.insert(0, "gate")
        if cell.baseline is not None:
            stages.insert(0, "train")
        trained[cell.method] = stages
    assert trained.pop("baseline") == ["train"] and len(trained) == 1 + len(COMPARED)
    assert all(stages == ["train", "gate", "finetune"] for stages in trained.values())
    for changes in ({"heal.schedule": "constant"}, {"heal.steps": 0}):
        with pytest.raises(UsageError, match="low learning rate: finetune needs steps and a schedule that falls"):
            dataclasses.replace(study, config=study.config.with_options(changes))


def test_what_is_given_goes_before_quick_and_quick_before_the_preset():
    full, quick = make_tradeoff(), make_tradeoff(options={"heal.steps": 7}, quick=True, seeds=6, scope="layer")
    assert (full.seeds, make_tradeoff(quick=True).seeds) == (3, 2)
    assert (quick.seeds, quick.shares, quick.scope) == (6, (0.5,), "layer")
    assert (quick.config.heal.steps, quick.config.train.steps) == (7, 200)
    assert quick.config.train.steps < full.config.train.steps
    with pytest.raises(UsageError, match="shares must be numbers from 0 to 1"):
        make_tradeoff(shares=())


@pytest.mark.slow
def test_a_study_is_computed_once_and_told_in_json_and_tables(tmp_path):
    arguments = [*given(tmp_path), "--directory", tmp_path / "study", "--jobs", "2"]
    rows = json.loads(succeed(*arguments, "--json").stdout)
    assert {row["study"] for row in rows} == {"tradeoff"} and {row["seed"] for row in rows} == {10, 11}
    assert all(row["bits_per_character"] > 0 for row in rows)
    assert len(rows_of(tmp_path / "study")) == len(rows)
    about = json.loads((tmp_path / "study" / "study.json").read_text())
    assert about["seeds"] == [10, 11] and about["config"]["train"]["steps"] == 12 and "Python" in about["machine"]
    kept = (tmp_path / "study" / "cells.jsonl").read_bytes()
    again = succeed(*arguments)
    assert "to be computed" not in again.stderr
    assert (tmp_path / "study" / "cells.jsonl").read_bytes() == kept
    assert "valid" in again.stdout.splitlines()[0]


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    arguments = [*given(tmp_path, gate_train=60), "--jobs", "2"]
    succeed(*arguments, "--directory", tmp_path / "whole")
    killed = start(*arguments, "--directory", tmp_path / "killed", start_new_session=True)
    log = tmp_path / "killed" / "cells.jsonl"
    wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = log.read_bytes()
    succeed(*arguments, "--directory", tmp_path / "killed")
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_their_parent_and_ctrl_c_says_how_to_go_on(tmp_path):
    arguments = [*given(tmp_path, gate_train=100_000), "--jobs", "2"]
    arguments += ["--directory", tmp_path / "study"]
    log = tmp_path / "study" / "cells.jsonl"
    for sign, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(*arguments)
        wait_until(lambda pid=process.pid: log.exists() and len(children(pid)) >= 2, process)
        workers = children(process.pid)
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
        assert process.returncode == status
        assert sign == signal.SIGKILL or ("is kept in" in said.splitlines()[-1] and "same command" in said)
        wait_until(lambda workers=workers: not any(alive(pid) for pid in workers), process)
        assert not any(alive(pid) for pid in workers)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


BAD = [(["--shares", "half"], "--shares takes numbers with commas between them, got 'half'")]
BAD += [(["--shares", "0.5,0.501"], "shares must stand for different numbers of heads; [0.5, 0.501] are [16, 16]")]
BAD += [(["--methods", "gates,gates"], "methods must be different")]
BAD += [(["--methods", ""], "methods must be at least one of random, magnitude, ")]
BAD += [(["--seeds", "0"], "seeds must be at least 1, got 0")]
BAD += [(["--set", "data.tokenizer=word", "--set", "data.vocabulary=50"], "need a tokenizer without <unk>")]
BAD += [(["--jobs", "0"], "jobs must be at least 1, got 0")]
BAD += [(["--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"], "--jobs is for this machine's processes")]
BAD += [(["--backend", "abacus"], "backend must be one of")]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_use_is_one_line(options, message, tmp_path):
    assert message in refused(2, "experiment", "tradeoff", "--directory", tmp_path / "study", *options)
    assert contents(tmp_path) == {}
