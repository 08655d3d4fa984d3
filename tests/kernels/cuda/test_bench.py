"""Our side of the benchmarks on a GPU computes what it does in NumPy."""

import numpy as np
import pytest

from tinyprune.bench import Workload
from tinyprune.bench import backend_workloads as ours
from tinyprune.bench.benchmarks.speed import TF32_TOLERANCE
from tinyprune.bench.processes import peak_memory
from tinyprune.bench.race import disagreement
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import empty

MODEL = """
model = {kind = "all-attention", V = 7, L = 1, D = 8, H = 2, N = 2, T = 3, M = 2, mask = "same-length"}
train = {B = 1}
"""
PRODUCT = {"m": 33, "k": 5, "n": 7}
WORK = [("matmul", PRODUCT | {"layout": layout}) for layout in ("A·B", "A·Bᵀ", "Aᵀ·B")]
WORK += [("attention", {}), ("decoder", {"n": 3}), *(("training_step", {"half": x}) for x in ("closed", "removed"))]


def test_products_in_tf32(place):
    """They are not those of float32, and not far from them."""
    results, expected = (ours.matmul(backend, **PRODUCT, layout="A·B").results() for backend in ("cuda-tf32", "numpy"))
    assert disagreement(results, expected, 1e-5) and not disagreement(results, expected, TF32_TOLERANCE / 2)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "arguments"), WORK)
def test_the_same_as_in_numpy(place, tmp_path, work, arguments):
    path = tmp_path / "model.toml"
    path.write_text(MODEL, encoding="utf-8")
    arguments = arguments if work == "matmul" else arguments | {"name": str(path)}
    results, expected = (getattr(ours, work)(backend, **arguments).results() for backend in ("cuda", "numpy"))
    assert all(isinstance(result, np.ndarray) for result in results.values())
    assert disagreement(results, expected, 1e-5) == ""


def test_memory_is_that_of_arrays(place):
    kept, gauge = [], ours.gauge(get_backend("cuda"))
    both = peak_memory(Workload(lambda: kept.append(empty(2**18)), gauge=gauge))
    assert 2 <= both["peak_mib"] < 2.5  # each of the two runs keeps 1 MiB
    one = peak_memory(Workload(lambda: empty(2**18).size, gauge=gauge))
    assert 1 <= one["peak_mib"] < 1.25
