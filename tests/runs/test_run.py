"""What a run adds to the method: its own way of choosing without gates, and weights that are put back."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
from command import die_in_write, refused, settings, succeed

from tinyprune.runs import run as stages
from tinyprune.training import loop

HOW = ["--target-heads=3", "--backend=numpy"]


@pytest.fixture(scope="module")
def baseline(book):
    run = book.parent / "baseline"
    succeed("train", run, "--corpus", book, *settings(), "--backend=numpy")
    return run


@pytest.fixture
def run(baseline, tmp_path):
    return shutil.copytree(baseline, tmp_path / "run")


def tensors(run, stage):
    found = safetensors.numpy.load_file(run / f"{stage}.safetensors")
    return {name: x for name, x in found.items() if name.startswith("params.")}


def test_gates_that_only_choose_leave_the_baselines_weights_also_after_a_kill(run, baseline, tmp_path):
    killed = shutil.copytree(baseline, tmp_path / "killed")
    succeed("gate", run, "--set=choose.rewind=true", *HOW)
    gated, before = tensors(run, "gate"), tensors(run, "train")
    assert all(np.array_equal(gated[name], x) for name, x in before.items())
    gates = [x for name, x in gated.items() if name.endswith("log_alpha")]
    assert (np.concatenate(gates) > 0).sum() == 3
    # dead between the last step and the moment when the weights are put back
    die_in_write(stages, 1, "gate", killed, "--set=choose.rewind=true", *HOW)
    assert "stage gate" in refused(2, "prune", killed) and "is not finished" in refused(2, "prune", killed)
    succeed("gate", killed, "--resume", "--backend=numpy")
    assert all(np.array_equal(x, gated[name]) for name, x in tensors(killed, "gate").items())
    for stage in ("prune", "finetune"):
        succeed(stage, killed, "--backend=numpy")
    assert b'"gate"' in (killed / "metrics.jsonl").read_bytes()  # the log of the gates stays


@pytest.mark.parametrize("by", ["layers", "least-squares", "confidence"])
def test_other_ways_of_choosing_train_no_gates(by, run):
    succeed("gate", run, f"--by={by}", *HOW)
    gates = [x for name, x in tensors(run, "gate").items() if name.endswith("log_alpha")]
    assert (np.concatenate(gates) > 0).sum() == 3
    if by == "layers":
        assert [int((x > 0).sum()) for x in gates] in ([2, 1], [1, 2])
    assert "needs choose.target_heads or choose.target_share" in refused(
        2, "gate", run, "--overwrite", f"--by={by}", "--lam=0.1"
    )


def test_a_stage_in_bf16_is_resumed_to_the_same_bits_and_refused_where_there_is_none(run, baseline, tmp_path):
    killed = shutil.copytree(baseline, tmp_path / "killed")
    how = ["--target-heads=3", "--set=gate_train.precision=bf16"]
    assert "products are of bfloat16 numbers" in succeed("gate", run, *how).stderr
    die_in_write(loop, 2, "gate", killed, *how)
    succeed("gate", killed, "--resume")
    assert (killed / "gate.safetensors").read_bytes() == (run / "gate.safetensors").read_bytes()
    for setting, stage in (("repair", "prune"), ("gate_train", "gate")):
        said = refused(2, stage, run, f"--set={setting}.precision=bf16", "--backend=numpy", "--overwrite")
        assert "precision must be float32 with --backend numpy, for only numba computes in bf16; got bf16" in said
