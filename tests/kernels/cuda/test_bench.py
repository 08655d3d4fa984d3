"""Our side of the benchmarks on a GPU computes what it does in NumPy, and `tinyprune bench cuda` has its records."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tinyprune.bench import Workload
from tinyprune.bench import backend_workloads as ours
from tinyprune.bench.benchmarks import cuda as benchmark
from tinyprune.bench.benchmarks.speed import TF32_TOLERANCE
from tinyprune.bench.command import Options, text_output
from tinyprune.bench.race import disagreement
from tinyprune.bench.server import Server, peak_memory
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import empty
from tinyprune.kernels.cuda.device.memory import POOL
from tinyprune.kernels.gpu import what_is_missing

from .attention_case import IN_USE, installed

MODEL = """
model = {kind = "all-attention", V = 7, L = 1, D = 8, H = 2, N = 2, T = 3, M = 2, mask = "same-length"}
train = {B = 1}
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text(MODEL, encoding="utf-8")
    return str(path)


class Here(contextlib.nullcontext):
    """In place of the libraries' processes: this one, and a turn is one run."""

    def __init__(self, threads):
        super().__init__(self)
        self.threads = threads
        self.server = Server()

    def ask(self, library, do, key, **arguments):
        if do != "turn":
            return getattr(self.server, do)(key, **arguments)
        work, begin = self.server.workloads[key], time.perf_counter()
        work.run()
        elapsed = time.perf_counter() - begin
        return {"seconds": elapsed / work.units, "elapsed": elapsed, "waited": 0.0}


@pytest.mark.slow
def test_every_operation_against_the_limits(place, model, monkeypatch):
    monkeypatch.setattr("tinyprune.bench.race.Processes", Here)
    product = (3, 8, 7, "A·B")
    monkeypatch.setattr(benchmark, "products", lambda names: [product])
    monkeypatch.setattr(benchmark, "COPIED", 512)
    monkeypatch.setattr(benchmark, "BUSY", {"threads": 512, "steps": 128})
    options = Options("cuda", shapes=(model,), rounds=1)
    records = benchmark.run_cuda(options)
    by_work = {record["shape"].split()[0]: record for record in records}
    assert list(by_work) == ["limit:", "matmul", "attention", "layernorm", "cross_entropy", "embedding", "adamw"]
    copied, computed = records[:2]
    assert copied["copy_share"] == 1 and computed["multiply_add_share"] == 1
    assert computed["gflops"] == pytest.approx(2 * 512 * 128 / computed["median_ms"] / 1e6)
    for record in records[2:]:
        assert record["benchmark"] == "cuda" and record["median_ms"] > 0
        assert 0 < record["copy_share"] == record["gbytes_per_second"] / copied["gbytes_per_second"]
        assert 0 < record["multiply_add_share"] == record["gflops"] / computed["gflops"]
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())
    moved = 4 * (3 * 8 + 8 * 7 + 3 * 7)
    matmul = by_work["matmul"]
    assert matmul["shape"] == "matmul 3×8×7 A·B" and matmul["gflops"] > 0
    assert matmul["gbytes_per_second"] == pytest.approx(moved / matmul["median_ms"] / 1e6)
    assert "multiply add share" in text_output([record | {"machine": "a GPU"} for record in records])


PRODUCT = {"m": 33, "k": 5, "n": 7}


def test_products_in_tf32(place):
    """They are not those of float32, and not far from them."""
    results, expected = (ours.matmul(backend, **PRODUCT, layout="A·B").results() for backend in ("cuda-tf32", "numpy"))
    assert disagreement(results, expected, 1e-5)
    assert not disagreement(results, expected, TF32_TOLERANCE / 2)


WORK = [("matmul", PRODUCT | {"layout": layout}) for layout in ("A·B", "A·Bᵀ", "Aᵀ·B")]
WORK += [("attention", {}), ("decoder", {"n": 3}), *(("training_step", {"half": x}) for x in ("closed", "removed"))]


@pytest.mark.slow
@pytest.mark.parametrize(("work", "arguments"), WORK)
def test_the_same_as_in_numpy(place, model, work, arguments):
    arguments = arguments if work == "matmul" else arguments | {"name": model}
    results, expected = (getattr(ours, work)(backend, **arguments).results() for backend in ("cuda", "numpy"))
    assert all(isinstance(result, np.ndarray) for result in results.values())
    assert disagreement(results, expected, 1e-5) == ""


def test_memory_is_that_of_arrays(place):
    kept, gauge = [], ours.gauge(get_backend("cuda"))
    both = peak_memory(Workload(lambda: kept.append(empty(2**18)), gauge=gauge))
    assert 2 <= both["peak_mib"] < 2.5  # each of the two runs keeps 1 MiB
    one = peak_memory(Workload(lambda: empty(2**18).size, gauge=gauge))
    assert 1 <= one["peak_mib"] < 1.25


def counted(*arguments):
    """Records of `tinyprune bench … --host`, in a process without Numba's simulator."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-m", "tinyprune", "bench", *arguments, "--host", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_linker = pytest.mark.skipif(what_is_missing() is not None, reason=f"not launched: {what_is_missing()}")


@needs_linker
def test_a_step_waits_for_the_gpu_once(model):
    """For loss and norm, while the GPU has the update to do; the other wait is the benchmark's own. To the GPU go ids,
    targets, and which rows of the embedding have which word, together."""
    (record,) = counted("cuda", "--rounds=2", f"--shapes={model}")
    assert record["waits"] == 2 and record["copies"] == 1 and record["allocations"] == 0
    assert record["launches"] < 40 and record["host_ms"] > 0


@needs_linker
def test_memory_is_counted_as_the_simulator_does(place, model):
    """But for the constants that other tests have left in the GPU's memory."""
    before = POOL.bytes_used
    with installed(IN_USE):
        work = ours.training_step("cuda", name=model)
        work.run()
        work.gauge.begin()
        work.run()
    (record,) = counted("memory", f"--shapes={model}")
    assert record["shape"] == f"step of {model}, B 1"
    assert record["gib"] * 2**30 == pytest.approx(work.gauge.peak() - before, rel=0.05)


@needs_linker
@pytest.mark.slow
def test_the_papers_batch_fits_where_eager_attention_does_not():
    *_, paper = counted("memory", "--backend=cuda")
    assert paper["shape"] == "step of paper, B 192"
    assert 14 < paper["gib"] < 16e9 / 2**30 and 120 < paper["eager_gib"] < 130
