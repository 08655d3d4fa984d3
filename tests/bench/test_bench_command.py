"""`tinyprune bench` as it is used."""

import json

import pytest
from command import refused, succeed
from toy_workloads import write_model

# Other programs rely on these.
KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops"]
QUICK = ("--backend=numpy", "--rounds=1", "--threads=1")


def measure(*arguments: str) -> list[dict]:
    records = json.loads(succeed("bench", *arguments, *QUICK, "--json").stdout)
    assert records
    for record in records:
        assert list(record)[: len(KEYS)] == KEYS
        assert record["benchmark"] == arguments[0] and record["median_ms"] > 0 and record["gflops"] > 0
        assert "numpy" in record["machine"] and "1 thread" in record["machine"]
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())
    return records


def test_attention_as_a_table(tmp_path):
    done = succeed("bench", "attention", "--preset", write_model(tmp_path), *QUICK)
    assert done.stdout.startswith("attention on ") and "tinyprune (numpy)" in done.stdout
    assert "subject median ms ratio to subject gflops" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_step_has_half_of_the_heads_a_yardstick_and_memory(tmp_path):
    records = measure("step", "--preset", write_model(tmp_path))
    ours, closed, removed, sgemm = records
    assert closed["subject"].endswith("half of the heads closed")
    assert removed["subject"].endswith("half of the heads removed")
    for record in (closed, removed):
        ratio = record["ratio_to_subject"]  # None on a busy machine
        assert ratio is None or ratio == pytest.approx(record["median_ms"] / ours["median_ms"])
    assert 0 < sgemm["sgemm_share"] <= 1 and sgemm["ratio_to_subject"] is None and sgemm["peak_mib"] is None
    assert ours["sgemm_share"] == pytest.approx(ours["gflops"] / (2 * 1.024**3 / sgemm["median_ms"] * 1e3))
    assert ours["peak_mib"] >= 0 and ours["memory_ratio"] in (1, None)


REFUSED = {
    "flops": "argument benchmark: invalid choice: 'flops'",
    "step --shapes=tiny --preset=tiny": "not allowed with argument",
    "step --shapes=tiny,enormous": "the benchmarks also know relative-d128",
    "attention --backend=cuda-emulated": "the emulator counts for the benchmark roofline",
    "roofline --backend=numpy": "the emulator counts for the benchmark roofline",
    "step --backend=fortran": "--backend must be one of ",
    "step --peers=jax": "--peers must be of torch; got 'jax'",
    "step --threads=0": "--threads must be at least 1, got 0",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_the_command_refuses(arguments):
    assert REFUSED[arguments] in refused(2, "bench", *arguments.split())
