"""All of `tinyprune run`, `eval` and `generate` with CUDA kernels: `tiny`, cut down, on a short text."""

import json
from functools import partial

import pytest
from command import settings

from tinyprune.cli import main
from tinyprune.runs import report

from ..compare import GPU

TEXT = "the quick brown fox jumps over the lazy dog; " * 12
SETTINGS = settings({"L": 2, "D": 16, "H": 4, "N": 8, "T": 8, "M": 8}, steps=2, lr=0.01)
SETTINGS += ["--set=data.valid_fraction=0.04", "--set=data.test_fraction=0.04", "--set=gate.log_alpha_init=0.3"]


def command(capsys, *arguments):
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def test_the_whole_method(place, tmp_path, capsys, monkeypatch):
    for name, value in {"SAMPLE_TOKENS": 5, "TIMING_ROUNDS": 1}.items():
        monkeypatch.setattr(report, name, value)
    timing = partial(report.milliseconds_per_1k_tokens, at_least=0.0, streams=1)
    monkeypatch.setattr(report, "milliseconds_per_1k_tokens", timing)
    monkeypatch.setattr("tinyprune.runs.run.rehearse", lambda *_: 0.0)  # half of the time: the stages do the same
    corpus = tmp_path / "text.txt"
    corpus.write_text(TEXT)
    tables = []
    for backend in ("numpy", GPU):
        directory = tmp_path / backend
        options = ("--corpus", corpus, "--backend", backend, "--target-heads", 4, "--json", *SETTINGS)
        out = command(capsys, "run", directory, *options)
        tables.append(json.loads(out))
        assert (directory / "report.md").exists()
    for expected, got in zip(*tables, strict=True):
        del expected["ms_per_1k_tokens"], got["ms_per_1k_tokens"]
        assert got == {key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                       for key, value in expected.items()}  # fmt: skip
    assert [record["heads_open"] for record in tables[1]] == [8, 4, 4, 4]

    written = [
        command(capsys, "generate", tmp_path / GPU, "--backend", backend, "--prompt", "the ", "--tokens", 8)
        for backend in ("numpy", GPU)
    ]
    assert written[0] == written[1] and len(written[1]) == len("the ") + 8 + 1
    (record,) = json.loads(command(capsys, "eval", tmp_path / GPU, "--backend", GPU, "--json"))
    assert record["heads_open"] == 4
