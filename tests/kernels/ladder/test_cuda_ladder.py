"""Every rung of the GPU ladders, in the simulator; what the compiler makes of them; and a GPU, where one is."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyprune.errors import UsageError, install_command
from tinyprune.kernels import gpu
from tinyprune.kernels.ladder import cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("numba.cuda") is None,
        reason="this Numba has no numba.cuda, nor is numba-cuda installed",
    ),
]
TOLERANCE = 1e-5
REAL = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}


def simulate(name):
    """What a function of simulate.py returns; a warning there is an error."""
    command = [sys.executable, "-W", "error", Path(__file__).with_name("simulate.py"), name]
    environment = REAL | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ladder(*arguments):
    """`python -m tinyprune.kernels.ladder.cuda` without the simulator."""
    command = [sys.executable, "-m", "tinyprune.kernels.ladder.cuda", *arguments]
    return subprocess.run(command, env=REAL, capture_output=True, text=True, encoding="utf-8", timeout=240)


@pytest.mark.parametrize("name", ["matmul", "attention"])
def test_same_as_numpy(name):
    errors = simulate(name)
    assert len(errors) == {"matmul": 24, "attention": 10}[name]
    assert {case: error for case, error in errors.items() if not error < TOLERANCE} == {}


def test_a_missing_barrier_is_noticed():
    errors = simulate("without_barriers")
    assert len(errors) == 4
    assert {case: error for case, error in errors.items() if error < TOLERANCE} == {}


def test_bad_arguments():
    assert simulate("refusals") == {
        "shapes": "a and b must be (M, K) and (K, N), got (2, 3) and (2, 3)",
        "dtype": "a and b must be float32, got float32 and float64",
        "fewer keys": "q and k must be (B, T, H, Dh) and (B, S, H, Dh) with S ≥ T, got (1, 3, 1, 4) and (1, 2, 1, 4)",
        "values": "v must have the shape of k, (1, 3, 1, 4), got (1, 2, 1, 4)",
        "dtype of q": "q, k and v must be float32, got float64, float32 and float32",
        "wide": "Dh must be at most 64, got 65",
    }


def test_each_rung_says_what_it_changes():
    assert min(simulate("docstrings").values()) > 2


def test_timing_checks_what_it_times():
    records = simulate("timing")
    assert [record["ladder"] for record in records] == 4 * ["matmul"] + 2 * ["attention"]
    assert all(record["milliseconds"] > 0 and record["largest_error"] < TOLERANCE for record in records)


def test_nothing_of_cuda_is_imported_unasked():
    code = (
        "import sys, tinyprune.kernels.ladder.cuda, tinyprune.kernels.ladder.matmul; print('numba.cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=REAL, capture_output=True, text=True, timeout=240)
    assert done.stdout == "False\n", done.stderr


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape(f"numba-cuda is not installed: {install_command('cuda')}")):
        cuda.compile_all([(9, 0)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu, "find_ptxas", lambda: None)
    with pytest.raises(
        UsageError, match=re.escape(f"ptxas is neither installed nor on the PATH: {install_command('cuda')}")
    ):
        cuda.compile_all([(9, 0)])


@pytest.mark.skipif(cuda.what_is_missing() is not None, reason=f"not compiled for a GPU: {cuda.what_is_missing()}")
def test_compiled():
    done = ladder("compile", "8.0", "9.0")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert len(records) == 2 * 8
    for record in records:
        assert f".entry {record['kernel']}(" in record["ptx"] and ".f32" in record["ptx"]
        assert ".f64" not in record["ptx"], record["kernel"]
        assert record["spill_store_bytes"] == record["spill_load_bytes"] == record["stack_bytes"] == 0, record["kernel"]
        assert 16 <= record["registers"] <= 128
    shared = {record["kernel"]: record["shared_bytes"] for record in records}
    assert shared["shared_tiles"] == 2 * 16 * 16 * 4 and shared["register_tile"] == 2 * 64 * 16 * 4


@pytest.mark.skipif(cuda.gpu_present(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line():
    done = ladder("time")
    assert done.returncode and done.stderr == "error: there is no NVIDIA GPU here (no driver, or it finds none)\n"


@pytest.mark.skipif(not cuda.gpu_present(), reason="no NVIDIA GPU here: the kernels have not run on one")
@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_on_the_gpu():
    done = ladder("time", "--size", "200", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert all(record["largest_error"] < 1e-4 for record in json.loads(done.stdout))
