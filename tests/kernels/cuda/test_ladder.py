"""Every rung of the GPU ladders; what the compiler makes of them; and their times on a GPU, where one is."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.errors import UsageError, install_command
from tinyprune.kernels import gpu
from tinyprune.kernels.ladder import cuda, cuda_attention, cuda_matmul

from .compare import normal

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", cuda_matmul.RUNGS)
def test_same_product_as_numpys(place, name):
    """In the larger shape there are four blocks, two tiles along k, and no edge that fits."""
    rung = cuda_matmul.RUNGS[name]
    large = (rung.x + 2, 19, rung.y + 3) if rung.x_is_row else (rung.y + 2, 19, rung.x + 3)
    assert np.prod(rung.grid(large[0], large[2])) == 4 and np.prod(rung.block) == 256
    pairs = [normal((M, K), (K, N)) for M, K, N in ((1, 1, 1), large, (0, 3, 4), (3, 0, 4), (3, 4, 0))]
    x, y = normal((7, 9), (9, 10))
    for a, b in (*pairs, (x.T, y[2:, ::2])):
        out = rung(a, b)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, a.astype(float) @ b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", cuda_attention.RUNGS)
@pytest.mark.parametrize(
    ("B", "T", "M", "H", "Dh"),
    [(1, 1, 0, 1, 1), (2, 2, 15, 1, 20), (1, 17, 0, 1, 5), (1, 2, 65, 2, 64), (0, 3, 0, 1, 4)],
)
def test_same_attention_as_the_textbooks(place, name, B, T, M, H, Dh):
    """Several blocks, tiles and heads, rows longer than a block has threads."""
    q, k, v = normal((B, T, H, Dh), (B, M + T, H, Dh), (B, M + T, H, Dh))
    out = cuda_attention.RUNGS[name](3 * q, np.asfortranarray(k), v)
    assert out.dtype == np.float32
    expected, _ = ops.attention_forward(*(x.astype(float) for x in (3 * q, k, v)))
    np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCE)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


Q, K = ones(1, 2, 1, 4), ones(1, 3, 1, 4)
WIDE = ones(1, 2, 1, 65)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ones(2, 3), ones(2, 3)), "a and b must be (M, K) and (K, N), got (2, 3) and (2, 3)"),
        ((ones(2, 3), ones(3, 4, dtype=float)), "a and b must be float32, got float32 and float64"),
        ((K, Q, Q), "q and k must be (B, T, H, Dh) and (B, S, H, Dh) with S ≥ T, got (1, 3, 1, 4) and (1, 2, 1, 4)"),
        ((Q, K, Q), "v must have the shape of k, (1, 3, 1, 4), got (1, 2, 1, 4)"),
        ((Q.astype(float), K, K), "q, k and v must be float32, got float64, float32 and float32"),
        ((WIDE, WIDE, WIDE), "Dh must be at most 64, got 65"),
    ],
)
def test_bad_arguments(place, arguments, message):
    rung = cuda_matmul.RUNGS["shared tiles"] if len(arguments) == 2 else cuda_attention.one_kernel
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rung(*arguments)


def test_each_rung_says_what_it_changes():
    rungs = [*(rung.kernel.py_func for rung in cuda_matmul.RUNGS.values()), *cuda_attention.RUNGS.values()]
    assert all(len(rung.__doc__.splitlines()) > 2 for rung in rungs)


def test_timing_checks_what_it_times(place):
    records = cuda.time_all(size=2, rounds=1, H=1)
    assert [record["ladder"] for record in records] == 4 * ["matmul"] + 2 * ["attention"]
    assert all(record["milliseconds"] > 0 and record["largest_error"] < TOLERANCE for record in records)


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, "numba-cuda is not installed"), ("numba_cuda", "NVIDIA's linker nvJitLink is not installed")],
)
def test_says_what_to_install(monkeypatch, installed, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(gpu, "linker", lambda: None)
    with pytest.raises(UsageError, match=re.escape(f"{message}: {install_command('cuda')}")):
        cuda.compile_all([(9, 0)])


def ladder(*arguments):
    """`python -m tinyprune.kernels.ladder.cuda` without the simulator."""
    command = [sys.executable, "-m", "tinyprune.kernels.ladder.cuda", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240)


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
