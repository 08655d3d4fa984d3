"""All of `tinyprune run`, `eval` and `generate` with --backend cuda, on a short text."""

import json

import pytest

from tinyprune import report
from tinyprune.cli import main

TEXT = "the quick brown fox jumps over the lazy dog; " * 12
MODEL = {"L": 1, "D": 8, "H": 2, "N": 3, "T": 6, "M": 5}
SETTINGS = [f"model.{name}={value}" for name, value in MODEL.items()]
SETTINGS += [f"{stage}.{name}={value}" for stage in ("train", "gate_train", "finetune") for name, value in
             {"steps": 2, "B": 2, "log_every": 1, "lr": 0.01}.items()]  # fmt: skip
SETTINGS += ["data.valid_fraction=0.04", "data.test_fraction=0.04", "gate.log_alpha_init=0.3"]


def command(capsys, *arguments):
    """Run a command in this process; what it wrote to standard output."""
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


@pytest.mark.slow
def test_the_whole_method(place, tmp_path, capsys, monkeypatch):
    for name, value in {"SAMPLE_TOKENS": 5, "TIMING_B": 1, "TIMING_ROUNDS": 1}.items():
        monkeypatch.setattr(report, name, value)
    corpus = tmp_path / "text.txt"
    corpus.write_text(TEXT)
    options = ["--corpus", corpus, *(part for setting in SETTINGS for part in ("--set", setting))]
    tables = []
    for backend in ("numpy", "cuda"):
        directory = tmp_path / backend
        out = command(capsys, "run", directory, "--backend", backend, "--target-heads", 1, "--json", *options)
        tables.append(json.loads(out))
        assert (directory / "report.md").exists()
    for expected, got in zip(*tables, strict=True):
        del expected["ms_per_1k_tokens"], got["ms_per_1k_tokens"]
        assert got == {key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                       for key, value in expected.items()}  # fmt: skip
    assert [record["heads_open"] for record in tables[1]] == [2, 1, 1, 1]

    written = [
        command(capsys, "generate", tmp_path / "cuda", "--backend", backend, "--prompt", "the ", "--tokens", 8)
        for backend in ("numpy", "cuda")
    ]
    assert written[0] == written[1] and len(written[1]) == len("the ") + 8 + 1
    (record,) = json.loads(command(capsys, "eval", tmp_path / "cuda", "--backend", "cuda", "--json"))
    assert record["heads_open"] == 1
