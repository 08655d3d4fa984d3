"""Who takes part in a benchmark, without running it: peers compute what we do, where we do, as exactly as we do."""

import pytest

from tinyprune.bench.benchmarks import speed
from tinyprune.bench.command import Options
from tinyprune.kernels import machine

CPU, CPU_TORCH = Options("numpy", threads=2), Options("numpy", peers=("torch",), threads=2)
GPU, GPU_TORCH = Options("cuda", threads=2), Options("cuda", peers=("torch",), threads=2)
TF32 = Options("cuda-tf32", peers=("torch",), threads=2)


@pytest.mark.parametrize("options", [CPU_TORCH, GPU_TORCH, TF32])
def test_torch_computes_where_we_do(options):
    contenders = ours, *peers = speed.attention_contenders(options, name="tiny")
    assert [c.subject for c in contenders] == [f"tinyprune ({options.backend})", "torch plain", "torch sdpa"]
    assert ours.arguments["backend"] == options.backend
    assert [peer.arguments["device"] for peer in peers] == 2 * [options.device]


@pytest.mark.parametrize(("options", "tolerance"), [(GPU_TORCH, 1e-4), (TF32, 5e-3)])
def test_cublas_is_the_yardstick_on_a_gpu_as_exact_as_we_are(options, tolerance):
    assert speed.tolerance(options, 1e-4) == tolerance and speed.sgemm(GPU) == ()
    (yardstick,) = speed.sgemm(options)
    assert (yardstick.subject, yardstick.compared) == ("cuBLAS", False)
    assert yardstick.arguments["device"] == options.backend
    assert speed.with_share([{"subject": "tinyprune (cuda)"}]) == [{"subject": "tinyprune (cuda)", "sgemm_share": None}]


def test_steps():
    compiled = speed.torch_step("sdpa", compiled=True, name="tiny")
    assert compiled.subject == "torch.compile (sdpa)" and compiled.optional and compiled.compared
    eager = speed.torch_step("plain", name="tiny")
    assert not eager.optional and eager.compared and eager.gflop == speed.our_step(CPU, name="tiny").gflop
    under_bf16 = speed.torch_step("sdpa", compiled=True, bf16=True, name="tiny")
    assert under_bf16.subject == "torch.compile (sdpa), bf16 autocast"
    assert under_bf16.compared and under_bf16.tolerance == speed.BF16_TOLERANCE and eager.tolerance is None
    half = speed.our_step(CPU, "closed", name="tiny")
    assert not half.compared and half.gflop < 0.55 * eager.gflop


def test_bf16_is_a_peer_where_the_processor_has_it(monkeypatch, capsys):
    monkeypatch.setattr(machine, "cpuinfo", lambda: "flags : fpu avx512f avx512_bf16\n")
    assert speed.with_bf16(CPU_TORCH) and not speed.with_bf16(CPU) and not speed.with_bf16(GPU_TORCH)
    assert capsys.readouterr().err == ""
    found = [c.arguments for c in speed.torch_steps(CPU_TORCH, "tiny", True)]
    assert len(found) == 8 and sum(c["bf16"] for c in found) == sum(c["compiled"] for c in found) == 4
    monkeypatch.setattr(machine, "cpuinfo", lambda: "flags : fpu avx512f avx2\n")
    assert not speed.with_bf16(CPU_TORCH)
    said = "PyTorch under bf16 autocast is left out: this processor has no bf16 products (avx512_bf16, amx_bf16)"
    assert said in capsys.readouterr().err
    assert not any(c.arguments["bf16"] for c in speed.torch_steps(CPU_TORCH, "tiny", False))
