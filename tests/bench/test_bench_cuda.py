"""Benchmarks on a GPU, as far as that can be seen without one: what is refused, who takes part, what is run.

That our side computes the same as NumPy, and the records, are in tests/kernels/cuda/test_bench.py.
"""

import importlib.util
import re

import pytest
from command import refused
from toy_works import write_model

from tinyprune.bench import ours
from tinyprune.bench.agreement import disagreement
from tinyprune.bench.benchmarks import attention, cuda, generate, matmul, step
from tinyprune.bench.machine import describe_machine
from tinyprune.bench.options import Options, check_benchmark, make_options
from tinyprune.bench.plot import plot_benchmark
from tinyprune.bench.worker import build
from tinyprune.errors import UsageError
from tinyprune.kernels import gpu

OUTSIDE = {"NUMBA_ENABLE_CUDASIM": "0"}
ALONE = Options("cuda", threads=2)
TORCH = Options("cuda", peers=("torch",), threads=2)


@pytest.mark.skipif(gpu.gpu_present(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [["cuda"], ["step", "--backend=cuda"], ["matmul", "--backend=cuda"]])
def test_without_a_gpu_it_is_refused(arguments):
    said = refused(2, "bench", *arguments, env=OUTSIDE)
    assert said.startswith("the cuda backend cannot run: ")
    assert said.endswith("; `tinyprune bench cuda --compile-only` needs no GPU")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cuda", "--backend=numba"], "`tinyprune bench cuda` is about kernels for GPUs; leave out --backend"),
        (["ladder", "--backend=cuda"], "`tinyprune bench ladder` is about kernels for the processor"),
        (["step", "--compile-only"], "--compile-only goes with `tinyprune bench cuda`"),
        (["cuda", "--compile-only", "--plot=a.png"], "--plot draws speeds, and --compile-only measures none"),
        (["attention", "--backend=cuda"], "times in Numba's simulator say nothing about a GPU"),
    ],
)
def test_what_is_refused(arguments, said):
    assert refused(2, "bench", *arguments, env={"NUMBA_ENABLE_CUDASIM": "1"}).startswith(said)


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is not None, reason="numba-cuda is installed")
def test_to_compile_it_says_what_to_install():
    assert refused(2, "bench", "cuda", "--compile-only").startswith("the package numba-cuda is not installed: pip inst")


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Kernels could run here, it is thought."""
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr("tinyprune.bench.options.why_unusable", lambda: None)


def test_a_pytorch_without_cuda_is_refused(pretended_gpu):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this PyTorch is built for CUDA, and there is a GPU")
    check_benchmark("step", ALONE)
    said = rf"--peers torch: PyTorch {re.escape(torch.__version__)} finds no GPU; install one that is built for CUDA"
    with pytest.raises(UsageError, match=said):
        check_benchmark("step", TORCH)
    from tinyprune.bench.peers.torch_attention import attention as torch_attention

    with pytest.raises(UsageError, match="finds no GPU"):
        torch_attention("plain", device="cuda", name="tiny")


def test_peers_compute_where_we_do():
    for options, device in ((TORCH, "cuda"), (Options("numba", peers=("torch",)), "cpu")):
        ours, *peers = attention.contenders(options, name="tiny")
        assert ours.arguments == {"backend": options.backend, "name": "tiny"}
        assert [peer.arguments["device"] for peer in peers] == 2 * [device]
    assert step.torch_step("sdpa", device="cuda", name="tiny").arguments["device"] == "cuda"
    decoder = generate.torch_decoder(1, 1.0, "tiny", "cuda")
    assert decoder.subject == "torch eager" and decoder.arguments["device"] == "cuda"
    assert [c.subject for c in generate.generate_case(TORCH, "tiny").contenders] == ["tinyprune (cuda)", "torch eager"]


def test_cublas_stands_beside_products_on_a_gpu():
    product = (3, 5, 4, "Aᵀ·B")
    assert [c.subject for c in matmul.case(product, TORCH).contenders] == ["tinyprune (cuda)", "cuBLAS"]
    assert [c.subject for c in matmul.case(product, ALONE).contenders] == ["tinyprune (cuda)"]
    assert [(c.subject, c.compared) for c in step.sgemm(TORCH)] == [("cuBLAS", False)]
    assert step.sgemm(ALONE) == ()
    assert step.with_share([{"subject": "tinyprune (cuda)"}]) == [{"subject": "tinyprune (cuda)", "sgemm_share": None}]


def test_both_sides_compute_in_tf32_or_none():
    tf32 = Options("cuda-tf32", peers=("torch",), threads=2)
    product = (3, 5, 4, "A·B")
    for options, device, tolerance in ((TORCH, "cuda", 1e-4), (tf32, "cuda-tf32", 5e-3)):
        case = matmul.case(product, options)
        assert case.tolerance == tolerance
        assert [c.arguments.get("backend", c.arguments.get("device")) for c in case.contenders] == 2 * [device]


@pytest.mark.parametrize(("device", "precision"), [("cpu", "highest"), ("cuda", "highest"), ("cuda-tf32", "high")])
def test_precision_of_pytorchs_products(monkeypatch, device, precision):
    torch = pytest.importorskip("torch")
    from tinyprune.bench.peers.device import torch_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        assert torch_device(device).type == device.split("-")[0]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("layout", ["A·B", "A·Bᵀ", "Aᵀ·B"])
def test_what_cublas_is_given(layout):
    """On the processor."""
    pytest.importorskip("torch")
    from tinyprune.bench.peers import cublas

    work = cublas.matmul(3, 5, 4, layout, device="cpu")
    work.run()
    assert disagreement(work.results(), ours.matmul("numpy", 3, 5, 4, layout).results(), 1e-6) == ""


def test_the_operations_of_a_model(tmp_path):
    """Of all but the limits, which only a GPU has: here NumPy computes them."""
    name = write_model(tmp_path)
    options = Options("numpy", shapes=(name,))
    found = cuda.all_cases(options)
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


def test_shares_of_the_limits():
    copied, computed, we, they = cuda.with_shares(RECORDS, {cuda.COPY: 2e9, cuda.MULTIPLY_ADD: 0, "matmul": 1e9})
    assert copied["gbytes_per_second"] == pytest.approx(1000) and copied["copy_share"] == 1
    assert computed["multiply_add_share"] == 1 and computed["copy_share"] == 0
    assert (we["copy_share"], we["multiply_add_share"]) == pytest.approx((0.25, 0.25))
    assert (they["copy_share"], they["multiply_add_share"]) == pytest.approx((0.5, 0.5))


def test_they_can_be_drawn():
    """A copy computes nothing, and has no place on a log scale."""
    figure = plot_benchmark([{"benchmark": "cuda"} | record for record in RECORDS])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [cuda.MULTIPLY_ADD, "matmul"]


def test_the_gpu_is_named(monkeypatch):
    monkeypatch.setattr("tinyprune.bench.machine.gpu_name", lambda: "NVIDIA A100")
    monkeypatch.setattr("tinyprune.bench.machine.driver_version", lambda: (13, 0))
    assert describe_machine(2, (), gpu=True).startswith("NVIDIA A100, driver for CUDA 13.0, ")
    assert "NVIDIA" not in describe_machine(2, ())


def test_defaults():
    assert make_options("cuda").device == "cuda" and make_options().device == "cpu"
    assert make_options("cuda", compile_only=True).compile_only
