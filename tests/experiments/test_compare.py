"""`tinyprune compare`: a small pretrained Llama, pruned by every method and healed."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from command import contents, refused, run_here, succeed
from toy import without_seconds

from tinyprune.data import Segments, load_text
from tinyprune.experiments.compare import COMPARED, Comparison
from tinyprune.experiments.results import read_csv
from tinyprune.kernels.backend import get_backend
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import write_hub
from tinyprune.pruning.importance import keep_best, michel_global, with_heads
from tinyprune.pruning.importance.fits import read_fits
from tinyprune.pruning.importance.least_squares import search
from tinyprune.pruning.repair import repaired
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.runs.directory import RunDirectory, load_model
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import Training, train_step

sys.path.append(str(Path(__file__).parents[1] / "pretrained"))
from samples import LINES, LLAMA, random_model

OPTIONS = ["--shares=0.75,0.5", "--tokens=100", "--score-tokens=60", "--repair-tokens=60", "--sample=40"]
OPTIONS += ["--backend=numpy"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_hub(folder / "hub", *random_model(LLAMA))
    (folder / "lines.txt").write_text("".join(LINES) * 30, encoding="utf-8")
    stages = ["--set=gate_train.steps=3", "--set=finetune.steps=4", "--set=finetune.lr=0.01"]
    succeed("import", folder / "hub", folder / "run", "--corpus", folder / "lines.txt", *stages)
    return folder / "run"


def rows_of(directory: Path) -> dict[tuple, dict]:
    rows = read_csv((directory / "results.csv").read_text())
    names = ("method", "heads_removed", "seed", "steps", "repair")
    return {tuple(r[name] for name in names): without_seconds(r) for r in rows}


def test_a_comparison_that_was_stopped_goes_on_and_has_the_right_numbers(run, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = succeed("compare", run, "--directory", whole, *OPTIONS, "--seeds=2", "--json")
    assert "flap is left out" in done.stderr and "67 cells to be computed, 0 are in" in done.stderr
    rows = rows_of(whole)
    assert len(json.loads(done.stdout)) == len(rows) == 60
    methods = [name for name in COMPARED if name != "flap"]
    assert list(dict.fromkeys(method for method, *_ in rows)) == ["whole", *methods]
    seeded = {method for method, _, seed, *_ in rows if seed == 1}
    assert seeded == {"gates", "random"}
    assert {(removed, steps) for _, removed, _, steps, _ in rows} == {(0, 0), (3, 0), (6, 0), (0, 4), (3, 4), (6, 4)}
    for (_, removed, *_), row in rows.items():
        assert sum(map(int, row["heads_by_layer"].split())) == 12 - removed
        assert row["megabytes"] == pytest.approx(4 * row["parameters"] / 1e6)
    lines = (whole / "cells.jsonl").read_text().splitlines()
    scores = [cell for line in lines if (cell := json.loads(line)["cell"])["what"] == "scores"]
    data = dict.fromkeys(("michel-global", "michel", "output-difference"), 60)
    reads = data | {"magnitude": 0, "random": 0, "leave-one-out": 40}
    assert {cell["method"]: cell["depends"]["reads"] for cell in scores} == reads and len(scores) == 7

    # By hand: the best 6 heads of one criterion, before and after four steps, on 100 tokens of the test split.
    saved = load_model(run / "train.safetensors", get_backend("numpy"))
    text = load_text(saved.data, saved.tokenizer)
    mask = keep_best(michel_global(saved.model, text.valid[:60], np.random.default_rng(0)), 6)
    smaller = remove_closed_heads(with_heads(saved.model, mask))

    def check(smaller: Transformer, row: dict) -> None:
        losses = []
        for begin in range(0, 99, 18):  # segments of T = 18 tokens
            ids = np.array(text.test[begin : min(begin + 19, 100)], int)
            losses += [float(smaller.loss(ids[None, :-1], ids[None, 1:])[0])] * (len(ids) - 1)
        assert row["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
        characters = len(text.tokenizer.decode(text.test[:100])) * 99 / 100
        assert row["bits_per_character"] == pytest.approx(sum(losses) / math.log(2) / characters, rel=1e-5)

    before, after = (rows["michel-global", 6, 0, steps, "none"] for steps in (0, 4))
    check(smaller, before)
    check(saved.model, rows["whole", 0, 0, 0, "none"])
    fitted = remove_closed_heads(repaired(saved.model, mask, text.train[:60]))
    check(fitted, rows["michel-global", 6, 0, 0, "least-squares"])
    stay = search(read_fits(saved.model, text.train[:60]), 6, relative=True)
    fitted = remove_closed_heads(repaired(saved.model, stay, text.train[:60]))
    check(fitted, rows["least-squares", 6, 0, 0, "least-squares"])
    config = RunDirectory(run).read_config().finetune
    whole_again = remove_closed_heads(with_heads(saved.model))
    for model, row in ((smaller, after), (whole_again, rows["whole", 0, 0, 4, "none"])):
        segments = Segments(text.train, config.B, 18)
        training = Training.start(model, segments, config, Distillation(saved.model, 0.5), None)
        for _ in range(4):
            train_step(training)
        check(model, row)
    assert after["perplexity"] < before["perplexity"] - 1

    computed = []

    def compute(self, cell, *others, original=Comparison.compute):
        if len(computed) == 26:
            raise KeyboardInterrupt
        computed.append(str(cell))
        return original(self, cell, *others)

    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "compute", compute)
        ended = run_here("compare", run, "--directory", stopped, *OPTIONS, "--seeds=2")
    assert ended.returncode == 130 and "the same command goes on" in ended.stderr
    again = succeed("compare", run, "--directory", stopped, *OPTIONS, "--seeds=2")
    assert "41 cells to be computed, 26 are in" in again.stderr
    assert rows_of(stopped) == rows
    kept = (stopped / "cells.jsonl").read_bytes()
    options = [*OPTIONS, "--methods=random,gates", "--heal=0", "--set=finetune.distill=0"]
    fewer = succeed("compare", run, "--directory", stopped, *options)
    assert "to be computed" not in fewer.stderr and (stopped / "cells.jsonl").read_bytes() == kept
    pages = [(directory / "README.md").read_text() for directory in (whole, stopped)]
    assert ["50% of the loss is the divergence" in page for page in pages] == [True, False]
    assert "| random | 6 |" in pages[1] and (stopped / "plots" / "compare.png").exists()


WRONG = {
    "--methods=flap": "methods must be without flap",
    "--methods=gate": "did you mean gates?",
    "--shares=0.5,0.51": "shares must stand for different numbers of heads",
    "--heal=-1": "heal must be different numbers of steps",
    "--heal-methods=confidence": "heal-methods must be among",
    "--sample=5": "sample must be at least 19, got 5",
    "--set=model.T=9": "model.T is what the baseline was made with",
}


@pytest.mark.parametrize("option", WRONG)
def test_what_makes_no_sense_is_refused(option, run, tmp_path):
    assert WRONG[option] in refused(2, "compare", run, "--directory", tmp_path / "new", option)
    assert contents(tmp_path) == {}
