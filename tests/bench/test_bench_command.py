"""`tinyprune bench` as it is used."""

import importlib.util
import json
import re

import pytest
from command import refused, succeed
from toy_works import write_model

from tinyprune.bench import BENCHMARKS
from tinyprune.bench.benchmarks import attention, generate, matmul, memory, step
from tinyprune.bench.machine import describe_machine
from tinyprune.bench.options import Options, make_options
from tinyprune.errors import UsageError

# Other programs rely on these.
KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops"]
QUICK = ("--backend=numpy", "--rounds=1", "--threads=1")
TORCH = Options("numpy", peers=("torch",), threads=2)


def measure(*arguments: str) -> list[dict]:
    records = json.loads(succeed("bench", *arguments, *QUICK, "--json").stdout)
    assert records
    for record in records:
        assert list(record)[: len(KEYS)] == KEYS
        assert record["benchmark"] == arguments[0] and record["median_ms"] > 0 and record["gflops"] > 0
        assert "numpy" in record["machine"] and "1 thread" in record["machine"]
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())
    return records


def test_attention_as_a_table_and_as_a_picture(tmp_path):
    model, picture = write_model(tmp_path), tmp_path / "attention.png"
    done = succeed("bench", "attention", "--preset", model, *QUICK, "--plot", picture)
    assert done.stdout.startswith("attention on ") and "tinyprune (numpy)" in done.stdout
    assert "median ms  ratio to subject  gflops" in done.stdout and "benchmark" not in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_matmul_has_numpys_blas_as_its_peer(tmp_path):
    records = measure("matmul", "--preset", write_model(tmp_path))
    assert [r["subject"] for r in records] == ["tinyprune (numpy)", "NumPy's BLAS"] * 15
    assert {"12×24×24 A·B", "24×12×24 Aᵀ·B", "12×17×24 A·Bᵀ", "20×24×72 A·B"} <= {r["shape"] for r in records}


def test_step_has_half_of_the_heads_a_yardstick_and_memory(tmp_path):
    records = measure("step", "--preset", write_model(tmp_path))
    ours, closed, removed, sgemm = records[:4]
    assert closed["subject"].endswith("half of the heads closed")
    assert removed["subject"].endswith("half of the heads removed")
    for record in (closed, removed):
        ratio = record["ratio_to_subject"]  # None on a busy machine
        assert ratio is None or ratio == pytest.approx(record["median_ms"] / ours["median_ms"])
    assert 0 < sgemm["sgemm_share"] <= 1 and sgemm["ratio_to_subject"] is None and sgemm["peak_mib"] is None
    best_ms = min(sgemm["median_ms"], sgemm["alone_ms"])
    assert ours["sgemm_share"] == pytest.approx(ours["gflops"] / (2 * 1.024**3 / best_ms * 1e3))
    assert ours["peak_mib"] >= 0


def test_generate_counts_tokens(tmp_path):
    (ours,) = measure("generate", "--preset", write_model(tmp_path))
    assert ours["tokens_per_second"] == pytest.approx(1e3 / ours["median_ms"])


def test_memory_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LENGTHS", (512, 1024))
    name = write_model(tmp_path, "transformer")
    records = memory.run(Options("numpy", shapes=(name,), rounds=1, threads=2))
    places = {sweep: [r["value"] for r in records if r["sweep"] == sweep] for sweep in ("T", "heads", "threads")}
    assert places == {"T": [512, 1024], "heads": [1, 2, 3], "threads": [1, 2]}
    # Attention in NumPy keeps T × T weights: twice the length, four times the memory.
    short, long, *steps = (r["peak_mib"] for r in records)
    assert long > 3 * short and all(peak is not None for peak in steps)
    assert [r["memory_ratio"] for r in records[:2]] == [1, 1]


def test_contenders_with_torch():
    """What takes part, without running it."""
    assert [c.subject for c in attention.contenders(TORCH, name="tiny")] == [
        *("tinyprune (numpy)", "torch plain", "torch sdpa")
    ]
    assert [c.subject for c in memory.step_contenders(TORCH, name="tiny")] == [
        *("tinyprune (numpy)", "torch plain", "torch sdpa")
    ]
    compiled = step.torch_step("sdpa", compiled=True, name="tiny")
    assert compiled.subject == "torch.compile (sdpa)" and compiled.optional and compiled.compared
    eager = step.torch_step("plain", name="tiny")
    assert not eager.optional and eager.compared and eager.gflop == step.our_step(TORCH, name="tiny").gflop
    half = step.our_step(TORCH, "closed", name="tiny")
    assert not half.compared and half.gflop < 0.55 * eager.gflop
    assert generate.torch_decoder(1, 1.0, "tiny").subject == "torch eager, 1 thread"


def test_the_yardstick_is_blas_at_its_best(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)
    assert [c.library for c in step.sgemm(TORCH)] == ["numpy"]
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    assert [c.library for c in step.sgemm(TORCH)] == ["numpy", "numpy as set"]
    assert "OPENBLAS_L2_SIZE=512" in describe_machine(1, ())
    assert matmul.blas((1, 2, 3, "A·B")).library == "numpy"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flops"], "argument benchmark: invalid choice: 'flops'"),
        (["step", "--preset=enormous"], "no preset or .toml file 'enormous'"),
        (["step", "--shapes=tiny,enormous"], "the benchmarks also know relative-d128"),
        (["step", "--shapes=tiny", "--preset=tiny"], "not allowed with argument"),
        (["step", "--backend=fortran"], "--backend must be one of "),
        (["step", "--peers=jax"], "--peers must be of torch; got 'jax'"),
        (["step", "--rounds=0"], "--rounds must be at least 1, got 0"),
        (["step", "--threads=-1"], "--threads must be at least 1, got -1"),
    ],
)
def test_what_is_refused(arguments, said):
    assert said in refused(2, "bench", *arguments)


def test_without_torch_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape('python -m pip install "torch>=2.4"')):
        make_options("numpy", peers="torch")


def test_names_are_separated_by_commas():
    options = make_options(shapes="tiny, plain-d128,")
    assert options.backend == "numba"
    assert options.shapes == ("tiny", "plain-d128") and options.peers == () and options.threads >= 1


def test_help():
    done = succeed("bench", "--help")
    assert all(name in done.stdout for name in BENCHMARKS) and done.stderr == ""
