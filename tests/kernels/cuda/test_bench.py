"""Our side of the benchmarks on a GPU: it computes what it does in NumPy, and `tinyprune bench cuda` has its records."""

import contextlib
import math

import numpy as np
import pytest

from tinyprune.bench import ours
from tinyprune.bench.agreement import disagreement
from tinyprune.bench.benchmarks import cuda as benchmark
from tinyprune.bench.options import Options
from tinyprune.bench.output import text_output
from tinyprune.bench.worker import Server, peak_memory
from tinyprune.kernels.cuda.array import empty

MODEL = """
[model]
kind = "all-attention"
V = 17
L = 2
D = 24
H = 3
N = 5
T = 6
M = 4
mask = "same-length"
[train]
B = 2
"""


@pytest.fixture
def model(tmp_path):
    """A model's name."""
    path = tmp_path / "model.toml"
    path.write_text(MODEL, encoding="utf-8")
    return str(path)


class Here(contextlib.nullcontext):
    """In place of the libraries' processes: this one."""

    def __init__(self, threads):
        super().__init__(self)
        self.threads = threads
        self.server = Server()

    def ask(self, library, do, **arguments):
        return getattr(self.server, do)(**arguments)

    def build(self, library, key, target, arguments):
        self.server.build(key, target, arguments, None)


def test_every_operation_against_the_limits(place, model, monkeypatch):
    monkeypatch.setattr("tinyprune.bench.race.Workers", Here)
    monkeypatch.setattr("tinyprune.bench.worker.TURN", 0.0)
    monkeypatch.setattr(benchmark, "COPIED", 512)
    monkeypatch.setattr(benchmark, "BUSY", {"threads": 512, "steps": 128})
    options = Options("cuda", shapes=(model,), rounds=1)
    records = benchmark.measure(benchmark.all_cases(options), options)
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
    product = next(record for record in records if record["shape"] == "matmul 12×24×17 A·B")
    moved = 4 * (12 * 24 + 24 * 17 + 12 * 17)
    assert product["gbytes_per_second"] == pytest.approx(moved / product["median_ms"] / 1e6)
    assert "multiply add share" in text_output([record | {"machine": "a GPU"} for record in records])


@pytest.mark.parametrize("layout", ["A·B", "A·Bᵀ", "Aᵀ·B"])
def test_products(place, layout):
    assert_same("matmul", m=33, k=5, n=7, layout=layout)


def test_attention(place, model):
    assert_same("attention", name=model)


@pytest.mark.parametrize("half", [None, "closed", "removed"])
def test_training(place, model, half):
    assert_same("training_step", half=half, name=model)


def test_reading_token_by_token(place, model):
    assert_same("decoder", n=3, name=model)


def assert_same(work, **arguments):
    """The work gives the same results on the GPU and in NumPy, and runs."""
    here, there = (getattr(ours, work)(backend, **arguments) for backend in ("cuda", "numpy"))
    results = here.results()
    assert all(isinstance(result, np.ndarray) for result in results.values())
    assert disagreement(results, there.results(), 1e-5) == ""
    here.run()


def test_memory_is_that_of_arrays(place, model):
    kept = []
    work = ours.Work(lambda: kept.append(empty(2**18)), gauge=ours.gauge("cuda"))
    assert 2 <= peak_memory(work)["peak_mib"] < 2.5  # two runs keep 1 MiB each
    work = ours.Work(lambda: empty(2**18).size, gauge=ours.gauge("cuda"))
    assert 1 <= peak_memory(work)["peak_mib"] < 1.25
    assert math.isclose(ours.attention("cuda", name=model).gauge.begin(), 0, abs_tol=1e9)
