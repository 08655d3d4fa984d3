"""The command line as it is used: what every command prints, and where."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import (
    CHECKPOINTS,
    DROPOUT,
    MODEL,
    STAGES,
    contents,
    settings,
    start,
    succeed,
    wait_until,
    without_compilation,
    write_text,
)

from tinyprune.cli import pieces
from tinyprune.config import read_config
from tinyprune.data.tokenizers import ByteTokenizer
from tinyprune.training.checkpoints import load_checkpoint

RUN_KEYS = [
    *("stage", "heads_open", "heads_total", "parameters", "multiply_adds_per_token"),
    *("bits_per_character", "perplexity", "ms_per_1k_tokens"),
]
COMMANDS = ["run", *STAGES, "eval", "generate", "describe", "gradcheck"]


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(book) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished run, and what it printed."""
    directory = book.parent / "finished"
    return directory, succeed("run", directory, "--corpus", book, *settings(), "--target-heads=3", "--json")


# A whole run.


def test_run_prints_its_table_as_json_and_nothing_else(finished):
    directory, done = finished
    records = json.loads(done.stdout)
    assert [record["stage"] for record in records] == list(STAGES)
    assert all(list(record) == RUN_KEYS for record in records)
    assert [record["heads_open"] for record in records] == [4, 3, 3, 3]
    assert records[3]["parameters"] < records[0]["parameters"]
    said = without_compilation(done.stderr)
    assert said[0].startswith("tinyprune: run: train 20, gate 20, prune, finetune 20 steps, then a report; all in ")
    assert said[-1] == f"tinyprune: report: {directory / 'report.md'} and plots/ are written"


def test_what_a_run_leaves_behind(finished):
    directory, _ = finished
    plots = [f"plots/{name}.png" for name in ("gates", "heads", "losses")]
    assert sorted(contents(directory)) == sorted(["config.toml", "metrics.jsonl", *CHECKPOINTS, *plots, "report.md"])
    config = read_config((directory / "config.toml").read_text(encoding="utf-8"), "config.toml")
    assert (config.model.N, config.gate.target_heads, config.finetune.steps) == (4, 3, 20)


def test_a_run_without_a_name_has_one(book, tmp_path):
    process = start("run", "--corpus", book, *settings(steps=300), cwd=tmp_path)
    wait_until((tmp_path / "runs" / "tiny-book" / "train.safetensors").exists, process)
    process.kill()
    process.communicate()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-book"]


TRANSFORMER_XL = MODEL | DROPOUT | {"kind": "transformer-xl", "N": 0, "F": 8}
TRANSFORMER = TRANSFORMER_XL | {"kind": "transformer", "M": 0, "mask": "causal"}
ADAPTIVE = ["--set=model.cutoffs=[9,17]", "--set=train.optimizer=lamb"]
VARIANTS = {
    "transformer-xl, bytes": [*settings(TRANSFORMER_XL), "--tokenizer=byte"],
    "transformer, words": [*settings(TRANSFORMER), "--tokenizer=word"],
    "layerwise, adaptive softmax": [*settings(), *ADAPTIVE, "--objective=layerwise", "--lam=0.5"],
    "no head left": [*settings(), "--target-heads=0"],
    "no steps": settings(steps=0),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_runs_from_end_to_end(variant, book, tmp_path):
    run = tmp_path / "run"
    done = succeed("run", run, "--corpus", book, *VARIANTS[variant], "--json")
    records = json.loads(done.stdout)
    assert all(list(record) == RUN_KEYS for record in records)
    assert records[3]["heads_open"] == (0 if variant == "no head left" else records[1]["heads_open"])
    assert "report: " in done.stderr and (run / "report.md").exists()
    assert succeed("generate", run, "--prompt=1 heads", "--tokens=5").stdout.startswith("1 heads")


def test_the_layerwise_error_and_lam_are_logged(book, tmp_path):
    run = tmp_path / "run"
    succeed("train", run, "--corpus", book, *settings())
    succeed("gate", run, "--objective=layerwise", "--lam=0.5", "--set=gate.lam_warmup=10")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    gate = [r for r in map(json.loads, lines) if r["stage"] == "gate" and r["split"] == "train"]
    assert [r["lam"] for r in gate] == pytest.approx([0.05 * min(step, 10) for step in range(20)])
    assert any(r["layerwise_error"] > 0 for r in gate)


# Stages alone.


@pytest.mark.parametrize("heads", [0, 1, 4])
def test_a_target_is_hit_exactly(heads, finished, tmp_path):
    """From another run's baseline, whose model and text are taken over."""
    directory, _ = finished
    run = tmp_path / "run"
    succeed("gate", run, "--from", directory / "train.safetensors", *settings(), f"--target-heads={heads}")
    done = succeed("prune", run)
    assert f"prune: {heads} of 4 heads stay" in done.stderr
    parts = json.loads(succeed("describe", run, "--json").stdout)
    model = load_checkpoint(run / "prune.safetensors")[1]["model"]
    assert sum(model.get("heads", [2, 2])) == heads
    assert parts[0]["part"] == "embedding and softmax"


def test_gates_from_another_run(finished, tmp_path):
    """A run's directory stands for its baseline; its text comes along."""
    directory, _ = finished
    run = tmp_path / "run"
    succeed("gate", run, "--from", directory, "--set=gate_train.steps=20", "--set=gate_train.B=2")
    saved = load_checkpoint(run / "gate.safetensors")[1]
    baseline = load_checkpoint(directory / "train.safetensors")[1]
    assert (saved["model"], saved["digest"]) == (baseline["model"], baseline["digest"])
    config = read_config((run / "config.toml").read_text(encoding="utf-8"), "config.toml")
    assert (config.model.N, config.data.corpus) == (4, baseline["data"]["corpus"])
    succeed("prune", run)
    succeed("finetune", run, "--set=finetune.steps=3", "--set=finetune.B=2")
    assert succeed("gate", run, "--resume", "--from", directory).stderr == "tinyprune: gate: already finished\n"


# Using a model.


def test_eval(finished):
    directory, done = finished
    (record,) = json.loads(succeed("eval", directory, "--split=test", "--json").stdout)
    (other,) = json.loads(succeed("eval", directory / "train.safetensors", "--json").stdout)
    assert list(record) == list(other) == [*RUN_KEYS, "split"]
    assert (record["stage"], record["split"], other["stage"], other["split"]) == ("finetune", "test", "train", "valid")
    # The same model and text as in the run's own table.
    unmeasured = [key for key in RUN_KEYS if key != "ms_per_1k_tokens"]
    assert [record[key] for key in unmeasured] == [json.loads(done.stdout)[3][key] for key in unmeasured]
    (gate,) = json.loads(succeed("eval", directory, "--stage=gate", "--json").stdout)
    assert (gate["stage"], gate["heads_open"]) == ("gate", 3)
    assert "finetune" in succeed("eval", directory).stdout.splitlines()[2]


def test_generate(finished):
    directory, _ = finished

    def write(*options: str) -> str:
        return succeed("generate", directory, "--prompt=17 heads\n", "--tokens=40", *options).stdout

    text = write()
    assert text.startswith("17 heads\n") and len(text) == len("17 heads\n") + 40 + 1
    assert write() == text
    assert write("--seed=1") != text
    likeliest = write("--temperature=0")
    assert likeliest == write("--temperature=0", "--seed=1") == write("--top-k=1", "--seed=2")
    assert write("--top-k=3") not in (text, likeliest)
    assert write("--stage=train") != text


def test_generated_text_is_there_as_soon_as_it_is_known(finished):
    directory, _ = finished
    process = start("generate", directory, "--prompt=1", "--tokens=1000000")
    assert len(process.stdout.read(30)) == 30
    process.send_signal(signal.SIGINT)
    process.communicate()


def test_generated_words_have_one_space_between_them(book, tmp_path):
    run = tmp_path / "run"
    steps = "--set=train.steps=60", "--set=train.lr=0.02"
    succeed("train", run, "--corpus", book, "--tokenizer=word", *settings(), *steps)
    for prompt in ("12 heads", "12  heads ", "12\nheads\n"):
        text = succeed("generate", run, f"--prompt={prompt}", "--tokens=60", "--temperature=1").stdout
        assert text.startswith(prompt.rstrip(" "))
        added = text[len(prompt.rstrip(" ")) : -1]
        assert "\n" in added and "  " not in added and " \n" not in added and "\n " not in added
        assert added.startswith((" ", "\n")) != prompt.endswith("\n")


def test_generated_bytes_are_shown_as_whole_characters():
    """Ten characters of three bytes each, and the first byte of another."""
    assert list(pieces(ByteTokenizer(), 0, ("€" * 10).encode() + b"\xe2")) == ["€"] * 10 + ["\ufffd"]


def test_describe(finished):
    directory, done = finished
    records = json.loads(done.stdout)
    for model, stage in ((directory, 3), (directory / "train.safetensors", 0)):
        parts = json.loads(succeed("describe", model, "--json").stdout)
        assert all(list(part) == ["part", "parameters", "multiply_adds_per_token"] for part in parts)
        (whole,) = [part for part in parts if part["part"] == "whole model"]
        assert whole["parameters"] == records[stage]["parameters"]
        assert whole["multiply_adds_per_token"] == records[stage]["multiply_adds_per_token"]
    assert "whole model" in succeed("describe", directory).stdout


def test_describe_a_preset_without_its_text():
    """WikiText-103 is neither there nor asked for."""
    begin = time.monotonic()
    parts = json.loads(succeed("describe", "--preset=paper-wt103", "--json").stdout)
    assert time.monotonic() - begin < 10
    (apart,) = [part for part in parts if part["part"] == "whole model, embedding apart"]
    assert 53e6 < apart["parameters"] < 55e6  # the paper: 53.8 M
    assert not Path("data", "downloads", "wikitext-103").exists()


def test_describe_the_default_and_changes_to_it():
    first, changed = (
        json.loads(succeed("describe", "--json", *options).stdout) for options in ([], ["--set=model.N=32"])
    )
    (before,), (after,) = ([part for part in parts if part["part"] == "whole model"] for parts in (first, changed))
    # Half of the 64 persistent keys and values of each head: 4 layers of 2 · 32 · 128.
    assert before["parameters"] - after["parameters"] == 4 * 2 * 32 * 128


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_gradcheck(mode):
    arguments = ["gradcheck", "--op=layernorm"] + (["--mode=central"] if mode == "central" else [])
    records = json.loads(succeed(*arguments, "--json").stdout)
    assert records
    for record in records:
        assert list(record) == ["operation", "argument", "mode", "relative_error", "passed"]
        assert record["operation"].startswith("layernorm") and record["passed"] is True
        assert record["mode"] == mode and record["relative_error"] < (1e-12 if mode == "complex" else 1e-6)
    assert "layernorm" in succeed(*arguments).stdout


# The program itself.


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=["tinyprune", *COMMANDS])
def test_help(command):
    done = succeed(*command, "--help")
    assert done.stderr == ""
    assert done.stdout.startswith(f"usage: {' '.join(['tinyprune', *command])} ")
    assert all(name in done.stdout for name in COMMANDS) or command


def test_the_installed_command_is_the_same():
    installed = shutil.which("tinyprune", path=str(Path(sys.executable).parent))
    assert installed, "tinyprune is not installed beside this Python; python -m pip install -e ."
    done = subprocess.run([installed, "describe", "--json"], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == succeed("describe", "--json").stdout
    wrong = subprocess.run([installed, "eval", "nowhere"], capture_output=True, text=True, encoding="utf-8")
    assert wrong.returncode == 2 and wrong.stderr.startswith("tinyprune: error: nowhere is neither")


@pytest.mark.parametrize(
    "use", ["", "from tinyprune.cli import main; main(['gate', '--help'])"], ids=["import", "help"]
)
def test_what_is_not_needed_is_not_imported(use):
    """So that the command answers at once."""
    program = (
        "import sys, tinyprune\n"
        f"try:\n    pass; {use}\nexcept SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'matplotlib', 'safetensors', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
