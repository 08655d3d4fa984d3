"""The command line as it is used: what every command prints, and where."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command as commands
import pytest
from command import DROPOUT, KEYS, LASTING, MODEL, STAGES, contents, refused, run_here, settings, succeed

from tinyprune.cli import main
from tinyprune.cli.options import parse_options
from tinyprune.cli.parser import COMMANDS, EXAMPLES, build_parser
from tinyprune.config import RunConfig, preset_names, read_config
from tinyprune.data import load_text
from tinyprune.data.corpora import catalogue
from tinyprune.experiments.methods import KNOWN
from tinyprune.kernels.backend import BACKENDS
from tinyprune.training.checkpoints import load_checkpoint

COMMANDS_WITH_MODELS = {stage: ["--overwrite"] for stage in STAGES}
COMMANDS_WITH_MODELS |= {"eval": [], "heads": [], "generate": ["--prompt=1", "--tokens=5"]}


@pytest.fixture(scope="module")
def done(book) -> subprocess.CompletedProcess:
    """What the run `finished` printed."""
    return succeed("run", book.parent / "done", "--corpus", book, *settings(), "--target-heads=3", "--json")


@pytest.fixture(scope="module")
def finished(book, done) -> Path:
    return book.parent / "done"


def test_run_prints_its_table_as_json_and_leaves_checkpoints_and_a_report(finished, done):
    records = json.loads(done.stdout)
    assert [record["stage"] for record in records] == list(STAGES)
    assert all(list(record) == KEYS for record in records)
    assert [record["heads_open"] for record in records] == [4, 3, 3, 3]
    assert records[3]["parameters"] < records[0]["parameters"]
    said = commands.without_compilation(done.stderr)
    assert said[0].startswith("tinyprune: run: train 20, gate 20, prune, finetune 20 steps, then a report; all in ")
    assert said[-1] == f"tinyprune: report: {finished / 'report.md'} and plots/ are written"
    plots = [f"plots/{name}.png" for name in ("gates", "heads", "losses")]
    assert sorted(contents(finished)) == sorted([*LASTING, *plots, "report.md"])
    config = read_config((finished / "config.toml").read_text("utf-8"), "config.toml")
    assert (config.model.N, config.choose.target_heads, config.heal.steps) == (4, 3, 20)


def test_a_run_without_a_name_has_one(book, tmp_path):
    process = commands.start("run", "--corpus", book, "--backend=numpy", *settings(steps=300), cwd=tmp_path)
    commands.wait_until((tmp_path / "runs" / "tiny-book" / "train.safetensors").exists, process)
    process.kill()
    process.communicate()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-book"]


TRANSFORMER_XL = MODEL | DROPOUT | {"kind": "transformer-xl", "N": 0, "F": 8}
TRANSFORMER = TRANSFORMER_XL | {"kind": "transformer", "M": 0, "mask": "causal"}
ADAPTIVE = ["--set=model.cutoffs=[9,17]", "--set=train.optimizer=lamb"]
VARIANTS = {
    "transformer-xl, bytes": [*settings(TRANSFORMER_XL), "--tokenizer=byte"],
    "transformer, words": [*settings(TRANSFORMER), "--tokenizer=word"],
    "adaptive softmax": [*settings(), *ADAPTIVE, "--lam=0.5"],
    "no head left": [*settings(), "--target-heads=0"],
    "no steps": settings(steps=0),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_runs_from_end_to_end(variant, book, tmp_path):
    run = tmp_path / "run"
    done = succeed("run", run, "--corpus", book, *VARIANTS[variant], "--json")
    records = json.loads(done.stdout)
    assert records[3]["heads_open"] == (0 if variant == "no head left" else records[1]["heads_open"])
    assert "report: " in done.stderr and (run / "report.md").exists()
    assert succeed("generate", run, "--prompt=1 heads", "--tokens=5").stdout.startswith("1 heads")


@pytest.mark.parametrize("command", COMMANDS_WITH_MODELS)
def test_quiet(command, finished, tmp_path, monkeypatch, capsys):
    """Without lines and bars, also on a terminal; results are the same."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run, written = shutil.copytree(finished, tmp_path / "run"), []
    for options in ([], ["--quiet"]):
        assert main([command, str(run), *COMMANDS_WITH_MODELS[command], *options]) == 0
        written.append(capsys.readouterr())
    (results, loud), (same, quiet) = written
    assert quiet == "" and (loud != "" or command in ("eval", "generate"))
    assert same == results


def test_gates_from_another_run(finished, tmp_path):
    """A run's directory stands for its baseline; its text comes along."""
    run = tmp_path / "run"
    succeed("gate", run, "--from", finished, "--set=gate_train.steps=20", "--set=gate_train.B=2")
    saved, baseline = (load_checkpoint(path)[1] for path in (run / "gate.safetensors", finished / "train.safetensors"))
    assert (saved["model"], saved["digest"]) == (baseline["model"], baseline["digest"])
    config = read_config((run / "config.toml").read_text("utf-8"), "config.toml")
    assert (config.model.N, config.data.corpus) == (4, baseline["data"]["corpus"])
    (pruned,) = json.loads(succeed("prune", run, "--json").stdout)
    (healed,) = json.loads(succeed("finetune", run, "--set=heal.steps=3", "--set=heal.B=2", "--json").stdout)
    assert list(pruned) == [*KEYS[:5], "valid_loss", "valid_bits_per_character", "checkpoint"]
    sizes = {name: x.size for name, x in load_checkpoint(run / "prune.safetensors")[0].items()}
    assert pruned["parameters"] == healed["parameters"] == sum(sizes[name] for name in sizes if "params." in name)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (healed["valid_loss"], pruned["valid_loss"]) == (last["loss"], None)
    assert healed["checkpoint"] == str(run / "finetune.safetensors")
    assert succeed("gate", run, "--resume", "--from", finished).stderr == "tinyprune: gate: already finished\n"


def test_a_run_by_scores_has_a_report_without_gates(book, tmp_path):
    said = succeed("run", tmp_path / "r", "--corpus", book, *settings(), "--target-heads=3", "--by=magnitude").stderr
    assert "run: train 20, gate by magnitude, prune, finetune 20 steps" in said
    report = (tmp_path / "r" / "report.md").read_text("utf-8")
    assert "Chosen by magnitude, without training, target 3 heads. Steps: 20 + 20." in report
    assert "plots/gates.png" not in report and not (tmp_path / "r" / "plots" / "gates.png").exists()


def test_eval(finished, done):
    (record,) = json.loads(succeed("eval", finished, "--split=test", "--time", "--json").stdout)
    (other,) = json.loads(succeed("eval", finished / "train.safetensors", "--json").stdout)
    assert list(record) == [*KEYS, "split", "tokens", "nats_of_segments"]
    *whole, last = record["nats_of_segments"]
    T = read_config((finished / "config.toml").read_text(), "").model.T
    left = record["tokens"] - 1 - T * len(whole)
    assert 0 < left <= T
    nats = (T * sum(whole) + left * last) / (record["tokens"] - 1)
    assert math.exp(nats) == pytest.approx(record["perplexity"], rel=1e-5)
    assert record.keys() - other.keys() == {"ms_per_1k_tokens"}
    assert (record["stage"], record["split"], other["stage"], other["split"]) == ("finetune", "test", "train", "valid")
    assert record["tokens"] == len(load_text(read_config((finished / "config.toml").read_text(), "").data).test)
    printed = json.loads(done.stdout)[3]  # the same model and text as in the run's own table
    assert all(record[key] == printed[key] for key in KEYS if key != "ms_per_1k_tokens")
    (gate,) = json.loads(succeed("eval", finished, "--stage=gate", "--json").stdout)
    assert (gate["stage"], gate["heads_open"]) == ("gate", 3)
    assert "finetune" in succeed("eval", finished).stdout.splitlines()[2]


def test_eval_in_windows(finished):
    (whole,), (record,) = (
        json.loads(succeed("eval", finished, "--json", *options).stdout)
        for options in ([], ["--window=8", "--stride=4"])
    )
    assert (record["window"], record["stride"]) == (8, 4) and "window" not in whole
    assert record["perplexity"] != whole["perplexity"] and record["tokens"] == whole["tokens"]
    assert "stride must be from 1 to the window, 8; got 9" in refused(2, "eval", finished, "--window=8", "--stride=9")


def test_eval_of_minimal_pairs(finished, tmp_path):
    keys = ("UID", "field", "linguistics_term", "sentence_good", "sentence_bad")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(dict(zip(keys, ("a", "b", "c", "17 heads", "71 sdaeh"), strict=True))))
    rows = json.loads(succeed("eval", finished, "--task", "blimp", path, "--json").stdout)
    assert [(r["level"], r["pairs"]) for r in rows] == [("all", 1), ("field", 1), ("phenomenon", 1), ("paradigm", 1)]
    assert "--task must be blimp, got 'glue'" in refused(2, "eval", finished, "--task", "glue", path)
    path.write_text(path.read_text().replace("17 heads", ""))
    assert "line 1 of" in refused(2, "eval", finished, "--task", "blimp", path)


def test_generate(finished):
    def write(*options: str) -> str:
        return succeed("generate", finished, "--prompt=17 heads\n", "--tokens=40", *options).stdout

    text = write()
    assert text.startswith("17 heads\n") and len(text) == len("17 heads\n") + 40 + 1
    assert write() == text
    assert write("--seed=1") != text
    likeliest = write("--temperature=0")
    assert likeliest == write("--temperature=0", "--seed=1") == write("--top-k=1", "--seed=2")
    assert write("--top-k=3") not in (text, likeliest)
    assert write("--stage=train") != text


def described(*arguments: str | Path) -> dict[str, dict]:
    return {part["part"]: part for part in json.loads(succeed("describe", *arguments, "--json").stdout)}


def test_describe(finished, done):
    first, _, _, last = json.loads(done.stdout)
    for model, record in ((finished, last), (finished / "train.safetensors", first)):
        parts, numbers = described(model), ["parameters", "multiply_adds_per_token"]
        assert all(list(part) == ["part", *numbers] for part in parts.values())
        assert [parts["whole model"][key] for key in numbers] == [record[key] for key in numbers]
    assert "whole model" in succeed("describe", finished).stdout


def test_describe_a_preset_without_its_text(tmp_path, monkeypatch):
    """WikiText-103 is neither there nor asked for."""
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path))
    apart = described("--preset=paper-wt103")["whole model, embedding apart"]
    assert 53e6 < apart["parameters"] < 55e6  # the paper: 53.8 M
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("mode", ["complex", "central"])
def test_gradcheck(mode):
    arguments = ["gradcheck", "--op=layernorm"] + (["--mode=central"] if mode == "central" else [])
    records = json.loads(succeed(*arguments, "--json").stdout)
    assert records
    for record in records:
        assert list(record) == ["operation", "argument", "mode", "relative_error", "passed"]
        assert record["operation"].startswith("layernorm") and record["passed"] is True
        assert record["mode"] == mode
        assert record["relative_error"] < (1e-12 if mode == "complex" else 1e-6)
    assert "layernorm" in succeed(*arguments).stdout


def test_list():
    kinds = json.loads(succeed("list", "--json").stdout)
    assert [record["kind"] for record in kinds] == ["presets", "corpora", "methods", "settings", "backends"]
    listed = {kind: json.loads(succeed("list", kind, "--json").stdout) for kind in [r["kind"] for r in kinds]}
    names = {kind: [next(iter(record.values())) for record in records] for kind, records in listed.items()}
    assert names["presets"] == preset_names() and names["corpora"] == list(catalogue())
    assert names["methods"] == list(KNOWN) and names["backends"] == list(BACKENDS)
    for record in [*kinds, *(record for records in listed.values() for record in records)]:
        about = record["about"]
        assert about and "\n" not in about and not about.endswith(".")
        assert about.count("(") == about.count(")")
    assert "wikitext-103" in succeed("list", "corpora").stdout
    assert "wikitext-103" not in succeed("list").stdout


def test_listed_settings_are_those_of_a_run_and_their_defaults():
    listed = {r["setting"]: r["default"] for r in json.loads(succeed("list", "settings", "--json").stdout)}
    config = RunConfig().with_options({k: v for k, v in listed.items() if not k.startswith("model.head")})
    assert config == RunConfig()
    tables = config.to_dict()
    written = {f"{table}.{key}" for table, values in tables.items() if table != "seed" for key in values}
    assert written < listed.keys() and "seed" in listed


def test_without_a_command_there_is_help_and_a_next_step():
    lines = succeed().stdout.splitlines()
    assert lines[:-2] == succeed("--help").stdout.splitlines()
    assert lines[-1].startswith("Next step: tinyprune run")
    assert "bash, zsh  " in lines[-4] and "fish  " in lines[-3]  # how completion is switched on


def completions(line: str, tmp_path: Path) -> list[str]:
    """What the shell is told that could follow what is typed."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    command = [sys.executable, "-m", "tinyprune"]
    subprocess.run(command, env=os.environ | asked, check=True, capture_output=True, cwd=tmp_path)
    return answer.read_text().split("\n")


def test_completion(tmp_path):
    (tmp_path / "mine.toml").touch()
    assert completions("tinyprune fi", tmp_path) == ["finetune"]
    assert completions("tinyprune train runs/a --tokenizer ", tmp_path) == ["character", "byte", "word"]
    assert sorted(completions("tinyprune run --preset paper", tmp_path)) == ["paper-text8", "paper-wt103"]
    assert completions("tinyprune run --preset mi", tmp_path) == ["mine.toml"]
    assert sorted(completions("tinyprune run --corpus t", tmp_path)) == ["text8", "tinyshakespeare"]
    assert completions("tinyprune run --set gate.lam_", tmp_path) == ["gate.lam_warmup="]


def test_a_corpus_is_found_from_any_folder(book, tmp_path, monkeypatch):
    """A path on the command line or in a preset is relative to the current folder, and kept as an absolute one."""
    shutil.copy(book, tmp_path / "near.txt")
    (tmp_path / "mine.toml").write_text('[data]\ncorpus = "near.txt"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    ways = {"option": ["--corpus=near.txt"], "set": ["--set=data.corpus=near.txt"], "preset": ["--preset=mine.toml"]}
    for name, way in ways.items():
        succeed("train", name, *way, *settings(steps=2))
        config = read_config((tmp_path / name / "config.toml").read_text("utf-8"), name)
        assert config.data.corpus == str(tmp_path / "near.txt")
    assert "already finished" in succeed("train", "option", "--resume", "--corpus=near.txt").stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert json.loads(succeed("eval", tmp_path / "option", "--json").stdout)[0]["stage"] == "train"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command):
    done = succeed(*command.split(), "--help")
    assert done.stderr == "" and done.stdout.startswith(f"usage: {f'tinyprune {command}'.strip()} ")
    assert all(name in done.stdout for name in COMMANDS) or command


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_the_help_are_commands(command):
    assert EXAMPLES[command]
    for example in EXAMPLES[command]:
        program, name, *words = shlex.split(example)
        assert (program, name) == ("tinyprune", command)
        given = build_parser().parse_args([name, *words])
        if hasattr(given, "options"):
            RunConfig().with_options(parse_options(given.options))


def test_an_error_of_what_cleans_up_after_a_stop_is_a_stop(monkeypatch):
    def stopped(arguments):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("no lock to release")

    def wrong(arguments):
        raise AttributeError("an error")

    for run, status in ((stopped, 130), (wrong, None)):
        monkeypatch.setitem(COMMANDS, "list", (run, "…"))
        if status is None:
            with pytest.raises(AttributeError, match="an error"):
                run_here("list", "presets")
        else:
            done = run_here("list", "presets")
            assert (done.returncode, done.stderr) == (status, "tinyprune: interrupted\n")
