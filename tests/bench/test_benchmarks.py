"""Who takes part in a benchmark, without running it: peers compute what we do, where we do, as exactly as we do."""

import re
import subprocess

import numpy as np
import pytest
from toy_workloads import write_model

from tinyprune.bench.benchmarks import breakdown, busy, cuda, memory, speed
from tinyprune.bench.command import Options, check_benchmark
from tinyprune.bench.figures import plot_benchmark
from tinyprune.bench.machine import describe_machine
from tinyprune.bench.server import build
from tinyprune.bench.shapes import model_shape, step_gflop
from tinyprune.errors import UsageError

CPU, CPU_TORCH = Options("numpy", threads=2), Options("numpy", peers=("torch",), threads=2)
GPU, GPU_TORCH = Options("cuda", threads=2), Options("cuda", peers=("torch",), threads=2)
TF32 = Options("cuda-tf32", peers=("torch",), threads=2)
PRODUCT = (3, 5, 4, "A·B")


@pytest.mark.parametrize("options", [CPU_TORCH, GPU_TORCH, TF32])
def test_torch_computes_where_we_do(options):
    for contenders in (speed.attention_contenders(options, name="tiny"), memory.step_contenders(options, name="tiny")):
        ours, *peers = contenders
        assert [c.subject for c in contenders] == [f"tinyprune ({options.backend})", "torch plain", "torch sdpa"]
        assert ours.arguments["backend"] == options.backend
        assert [peer.arguments["device"] for peer in peers] == 2 * [options.device]


def test_steps():
    compiled = speed.torch_step("sdpa", compiled=True, name="tiny")
    assert compiled.subject == "torch.compile (sdpa)" and compiled.optional and compiled.compared
    eager = speed.torch_step("plain", name="tiny")
    assert not eager.optional and eager.compared and eager.gflop == speed.our_step(CPU, name="tiny").gflop
    half = speed.our_step(CPU, "closed", name="tiny")
    assert not half.compared and half.gflop < 0.55 * eager.gflop


def test_threads_of_torch_matter_on_the_processor_only():
    assert speed.torch_decoder(1, 1.0, "tiny").subject == "torch eager, 1 thread"
    case = speed.generate_case(GPU_TORCH, "tiny")
    assert [c.subject for c in case.contenders] == ["tinyprune (cuda)", "torch eager"]
    assert case.contenders[1].arguments["device"] == "cuda"


def test_the_yardstick_is_blas_at_its_best(monkeypatch):
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert [c.library for c in speed.sgemm(CPU_TORCH)] == ["numpy"]
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    assert [c.library for c in speed.sgemm(CPU_TORCH)] == ["numpy", "numpy as set"]
    assert "OPENBLAS_L2_SIZE=512" in describe_machine(1, ())
    assert speed.blas(PRODUCT).library == "numpy"


def test_cublas_is_the_peer_of_products_on_a_gpu():
    assert [c.subject for c in speed.matmul_case(PRODUCT, GPU_TORCH).contenders] == ["tinyprune (cuda)", "cuBLAS"]
    assert [c.subject for c in speed.matmul_case(PRODUCT, GPU).contenders] == ["tinyprune (cuda)"]
    assert [(c.subject, c.compared) for c in speed.sgemm(GPU_TORCH)] == [("cuBLAS", False)]
    assert speed.sgemm(GPU) == ()
    assert speed.with_share([{"subject": "tinyprune (cuda)"}]) == [{"subject": "tinyprune (cuda)", "sgemm_share": None}]


@pytest.mark.parametrize(("options", "tolerance"), [(GPU_TORCH, 1e-4), (TF32, 5e-3)])
def test_both_sides_compute_in_tf32_or_none(options, tolerance):
    case = speed.matmul_case(PRODUCT, options)
    ours, peer = case.contenders
    assert case.tolerance == tolerance and ours.arguments["backend"] == peer.arguments["device"] == options.backend


def test_a_pytorch_without_cuda_is_refused(monkeypatch):
    """Our kernels can run here, it is pretended."""
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr("tinyprune.bench.command.why_unusable", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_benchmark("step", GPU)
    said = rf"--peers torch: PyTorch {re.escape(torch.__version__)} finds no GPU; install one that is built for CUDA"
    with pytest.raises(UsageError, match=said):
        check_benchmark("step", GPU_TORCH)
    from tinyprune.bench.torch_operations import attention

    with pytest.raises(UsageError, match="finds no GPU"):
        attention("plain", device="cuda", name="tiny")


def test_the_operations_of_a_model(tmp_path):
    """All but the limits, which only a GPU has, are computed by NumPy here."""
    name = write_model(tmp_path)
    found = cuda.all_cases(Options("numpy", shapes=(name,)))
    moved = {one.case.shape.replace(name, "model"): one.bytes for one in found}
    assert moved["limit: copy"] == 2 * 4 * cuda.COPIED and moved["limit: multiply-add"] == 0
    assert moved["layernorm model, 20×24"] == 4 * 5 * 20 * 24
    assert moved["cross_entropy model, 12×17"] == 4 * 4 * 12 * 17
    assert moved["embedding model, 12 of 17×24"] == 4 * (3 * 12 * 24 + 17 * 24)
    # q and out (2, 6, 3, 8), k and v (2, 10, 3, 8), r (10, 3, 8), u and w (3, 8), pk and pv (3, 5, 8)
    assert moved["attention model"] == 4 * 3 * (2 * 2 * 6 * 24 + 2 * 2 * 10 * 24 + 10 * 24 + 2 * 24 + 2 * 5 * 24)
    assert [shape for shape in moved if shape.startswith("adamw model, ")]
    assert sum(shape.startswith("matmul ") for shape in moved) == 15
    for one in found[2:]:
        contender = one.case.contenders[0]
        assert contender.gflop > 0
        build(contender.target, contender.arguments).run()


RECORDS = [
    {"shape": cuda.COPY, "subject": "we", "median_ms": 2.0, "gflops": 0.0, "ratio_to_subject": 1.0},
    {"shape": cuda.MULTIPLY_ADD, "subject": "we", "median_ms": 1.0, "gflops": 8000.0, "ratio_to_subject": 1.0},
    {"shape": "matmul", "subject": "we", "median_ms": 4.0, "gflops": 2000.0, "ratio_to_subject": 1.0},
    {"shape": "matmul", "subject": "cuBLAS", "median_ms": 2.0, "gflops": 4000.0, "ratio_to_subject": 0.5},
]


def test_shares_of_the_limits_and_their_picture():
    copied, computed, we, they = cuda.with_shares(RECORDS, {cuda.COPY: 2e9, cuda.MULTIPLY_ADD: 0, "matmul": 1e9})
    assert copied["gbytes_per_second"] == pytest.approx(1000) and copied["copy_share"] == 1
    assert computed["multiply_add_share"] == 1 and computed["copy_share"] == 0
    assert (we["copy_share"], we["multiply_add_share"]) == pytest.approx((0.25, 0.25))
    assert (they["copy_share"], they["multiply_add_share"]) == pytest.approx((0.5, 0.5))
    # a copy computes nothing, and has no place on a log scale
    figure = plot_benchmark([{"benchmark": "cuda"} | record for record in RECORDS])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [cuda.MULTIPLY_ADD, "matmul"]


@pytest.mark.parametrize("kind", ["all-attention", "head networks", "transformer-xl", "transformer"])
def test_the_work_of_a_step(tmp_path, kind):
    """Products as `step_gflop` counts them, without what the masks hide and with the scores that backward repeats."""
    name = write_model(tmp_path, kind)
    shape = model_shape(name)
    c, B = shape.config, shape.B
    observed, seconds = breakdown.take_steps("numba", shape)
    assert seconds.keys() - {breakdown.BETWEEN} == {name for name, work in observed.work.items() if work.calls}
    # what is left between the operations is a difference of two times, and on a busy machine can be below 0
    assert all(value > 0 for name, value in seconds.items() if name != breakdown.BETWEEN)
    found = {name: work.operations for name, work in observed.work.items() if work.operations}
    seen = sum(min(t + c.M, c.span if c.span is not None else t + c.M) + 1 for t in range(c.T))  # context keys
    product, pairs = 2 * c.L * B * c.D, seen + c.T * c.attended
    positions = seen if c.relative else 0
    assert found.pop("attention_forward") == product * (2 * pairs + positions)
    assert found.pop("attention_backward") == product * (5 * pairs + 3 * positions)
    hidden = 3 * product * (2 * c.T * (c.M + c.T + c.attended) + (c.T * (c.M + c.T) if c.relative else 0))
    output = 3 * 2 * B * c.T * c.D * c.V
    assert sum(found.values()) == pytest.approx(1e9 * step_gflop(c, B) - hidden + output)
    assert observed.work["attention_forward"].exponentials == c.L * B * c.H * pairs
    assert observed.work["attention_forward"].calls == c.L


def test_the_work_of_frozen_weights_and_of_fewer_keys():
    n, Wq, Wk, b = (np.zeros(shape, np.float32) for shape in ((2, 7, 5), (5, 12), (5, 4), (12,)))
    product = 2.0 * 5 * (2 * 3 * 12 + 2 * 7 * (4 + 4))  # three positions have queries
    for frozen, factor in ((False, 2), (True, 1)):
        work = breakdown.work_of("projections_forward", (n, Wq, Wk, Wk, 3, b), {"frozen": frozen})
        assert work == {"projections_forward": (product, 0), "projections_backward": (factor * product, 0)}


def test_what_moves_in_memory():
    x, y = np.zeros(8, np.float32), np.zeros(3)
    assert breakdown.moved_bytes(((x, {"y": [y]}), {"x": x}), (x + 1, None)) == 32 + 24 + 32
    assert breakdown.moved_bytes((x, y), x[2:]) == 0  # a view
    assert breakdown.moved_bytes((x, y), None) == 32 + 24


def test_limits():
    measured = {"a": np.array([2, 0.01, 8e9, 0.001, 0.002, 0.003]), "b": np.array([1, 0.03, 0, 0, 0.02, 0.001])}
    b, a, both = breakdown.records("tiny", measured, 2e12)
    assert (b["operation"], a["operation"], both["operation"]) == ("b", "a", "all")
    assert (a["calls"], a["products_ms"], a["limit_ms"]) == pytest.approx((2, 4, 4 + 1 + 3))
    assert (b["limit_ms"], b["limit_share"]) == pytest.approx((21, 0.7))
    assert (both["median_ms"], both["limit_ms"]) == pytest.approx((40, 29))
    figure = plot_benchmark([b, a])
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a"]


@pytest.mark.slow
def test_a_breakdown(tmp_path):
    records = breakdown.run_breakdown(Options("numba", shapes=(write_model(tmp_path),), rounds=1))
    assert records[-1]["operation"] == "all" and records[-1]["median_ms"] > records[0]["median_ms"] > 0
    assert all(record["limit_ms"] > 0 for record in records)


def test_a_busy_machine(tmp_path, monkeypatch):
    """Each contender under each load, and no busy program is left; the textbook is its own peer."""
    for name in ("SECONDS", "FIRST", "SPREAD"):
        monkeypatch.setattr(busy, name, 0.01)
    monkeypatch.setattr(busy, "processors", lambda: 2)
    monkeypatch.setattr(busy, "SETTINGS", ())
    programs, start = [], subprocess.Popen
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *a, **k: programs.append(start(*a, **k)) or programs[-1])
    records = busy.run_busy(Options("numpy", shapes=(write_model(tmp_path),), rounds=1, threads=1))
    assert [(r["subject"], r["busy_programs"]) for r in records] == [("tinyprune (numpy)", n) for n in (0, 1, 2)] * 2
    assert all(r["times_idle"] == pytest.approx(r["median_ms"] / records[0]["median_ms"]) for r in records[:3])
    assert [p.poll() is not None for p in programs if "-c" in p.args] == [True] * (1 + 2)
