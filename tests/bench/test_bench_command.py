"""`tinyprune bench` as it is used."""

import json
import sys

import pytest
from command import refused, run_here, succeed
from toy_workloads import write_model

from tinyprune.bench.benchmarks import speed
from tinyprune.errors import TinypruneError

# Other programs rely on these.
KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops"]
QUICK = ("--backend=numpy", "--rounds=1", "--threads=1")


def measure(*arguments: str) -> list[dict]:
    records = [json.loads(line) for line in succeed("bench", *arguments, *QUICK, "--json").stdout.splitlines()]
    assert records
    for record in records:
        assert list(record)[: len(KEYS)] == KEYS
        assert record["benchmark"] == arguments[0] and record["median_ms"] > 0 and record["gflops"] >= 0
        assert "numpy" in record["machine"] and "1 thread" in record["machine"]
        assert record["command"].startswith(f"tinyprune bench {arguments[0]} --backend numpy --shapes ")
        assert record["command"].endswith(" --rounds 1 --threads 1 --json")
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())
    return records


def test_attention_as_a_table(tmp_path):
    done = succeed("bench", "attention", "--preset", write_model(tmp_path), *QUICK)
    assert done.stdout.startswith("attention on ") and "tinyprune (numpy)" in done.stdout
    assert "subject median ms ratio to subject gflops" in " ".join(done.stdout.split())


def test_generate_says_tokens_per_second(tmp_path):
    ours, memory = measure("generate", "--preset", write_model(tmp_path))
    assert ours["tokens_per_second"] == pytest.approx(1e3 / ours["median_ms"])
    assert memory["subject"] == "its bytes, read once"
    assert memory["ratio_to_subject"] == pytest.approx(memory["median_ms"] / ours["median_ms"])


@pytest.mark.slow
def test_a_breakdown_has_every_operation_and_its_limit(tmp_path):
    done = succeed("bench", "breakdown", "--preset", write_model(tmp_path), "--rounds=1", "--threads=1", "--json")
    whole, *rows = (json.loads(line) for line in done.stdout.splitlines())
    assert whole["operation"] == "all" and {"matmul", "attention_forward", "between"} <= {r["operation"] for r in rows}
    for key in ("calls", "ms", "products_ms", "memory_ms", "calls_ms", "limit_ms", "closed_ms", "removed_ms"):
        assert whole[key] == pytest.approx(sum(row[key] for row in rows))
    assert all(0 <= row["limit_ms"] <= row["ms"] for row in rows)


@pytest.mark.slow
def test_step_has_half_of_the_heads_a_yardstick_and_memory(tmp_path):
    records = measure("step", "--preset", write_model(tmp_path))
    ours, closed, removed, sgemm = records
    assert closed["subject"].endswith("half of the heads closed")
    assert removed["subject"].endswith("half of the heads removed")
    for record in (closed, removed):
        assert record["ratio_to_subject"] == pytest.approx(record["median_ms"] / ours["median_ms"])
    assert 0 < sgemm["sgemm_share"] <= 1 and sgemm["ratio_to_subject"] is None and sgemm["peak_mib"] is None
    assert ours["sgemm_share"] == pytest.approx(ours["gflops"] / (2 * 1.024**3 / sgemm["median_ms"] * 1e3))
    assert ours["peak_mib"] >= 0 and ours["memory_ratio"] in (1, None)


@pytest.mark.parametrize(("ending", "status"), [(KeyboardInterrupt(), 130), (TinypruneError("they disagree"), 1)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_each_shape_is_printed_at_once_and_is_not_lost(form, ending, status, monkeypatch):
    """Neither by Ctrl-C nor by an error at a later shape."""

    def run_step(options):
        for name in options.shapes:
            yield [{"benchmark": "step", "shape": name, "subject": "we", "median_ms": 2.0}]
            assert name in sys.stdout.getvalue()
        raise ending

    monkeypatch.setattr(speed, "run_step", run_step)
    done = run_here("bench", "step", "--shapes=tiny,plain-d128", *QUICK, *(["--json"] if form == "json" else []))
    assert done.returncode == status and done.stderr.count("\n") == 1
    if form == "json":
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [record["shape"] for record in records] == ["tiny", "plain-d128"]
        assert all("1 thread" in record["machine"] for record in records)
    else:
        machine, one, two = done.stdout.split("\n\n")
        assert "1 thread" in machine
        assert one.splitlines()[-1].split() == ["tiny", "we", "2"]
        assert two.splitlines()[-1].split() == ["plain-d128", "we", "2"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_race_that_ctrl_c_ended_is_the_last(form, monkeypatch):
    def run_step(options):
        yield [{"benchmark": "step", "shape": "tiny", "subject": "we", "median_ms": 2.0, "rounds": 3}]
        raise AssertionError

    monkeypatch.setattr(speed, "run_step", run_step)
    options = ("--backend=numpy", "--rounds=4", "--threads=1")
    done = run_here("bench", "step", *options, *(["--json"] if form == "json" else []))
    assert done.returncode == 130 and "tiny" in done.stdout


def test_nothing_is_printed_if_the_first_shape_fails(monkeypatch):
    def run_step(options):
        raise TinypruneError("no memory")
        yield

    monkeypatch.setattr(speed, "run_step", run_step)
    done = run_here("bench", "step", *QUICK, "--json")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "tinyprune: error: no memory\n")


REFUSED = {
    "flops": "argument benchmark: invalid choice: 'flops'",
    "step --shapes=tiny --preset=tiny": "not allowed with argument",
    "step --shapes=tiny,enormous": "the benchmarks also know relative-d128",
    "attention --backend=cuda-emulated": "the emulator counts for the benchmark roofline",
    "roofline --backend=numpy": "the emulator counts for the benchmark roofline",
    "step --backend=fortran": "--backend must be of ",
    "step --peers=jax": "--peers must be of torch, llama.cpp; got 'jax'",
    "generate --peers=llama": "--peers must be of torch, llama.cpp; got 'llama'",
    "generate --shapes=tiny,no-such-file.gguf": "the benchmarks also know relative-d128",
    "step --peers=llama.cpp": "--peers llama.cpp is for the benchmark generate, got step",
    "breakdown --backend=numpy": "--backend must be numba for breakdown, got numpy",
    "generate --backend=cuda-tf32": "--backend must be numba or numpy for generate, got cuda-tf32",
    "step --threads=0": "--threads must be at least 1, got 0",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_the_command_refuses(arguments):
    assert REFUSED[arguments] in refused(2, "bench", *arguments.split())
