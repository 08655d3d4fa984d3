"""`tinyprune compare`: a small pretrained Llama, heads and blocks pruned by several methods, repaired and healed."""

import dataclasses
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import contents, refused, run_here, succeed
from scipy.stats import t

from tinyprune.config import ChooseConfig, RunConfig
from tinyprune.data import BytePairTokenizer, ByteTokenizer, Segments, load_text
from tinyprune.experiments import compare
from tinyprune.experiments.compare import PIECES, CheckpointCell, Comparison
from tinyprune.experiments.results import read_csv
from tinyprune.kernels.backend import get_backend
from tinyprune.method.choose import open_best
from tinyprune.method.criteria import michel_global
from tinyprune.method.gates import in_parts
from tinyprune.method.recipe import Recipe
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import refitted
from tinyprune.pretrained.blimp import KEYS
from tinyprune.pretrained.gguf_writer import write_gguf
from tinyprune.pretrained.words import QUESTION, ask, capitals, countries, farther, induction
from tinyprune.runs.directory import RunDirectory, load_model
from tinyprune.runs.run import Run
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import Training, train_step

sys.path.append(str(Path(__file__).parents[1] / "pretrained"))
from samples import GPT2, LINES, LLAMA, random_model

UNITS, READ = 4, 90
OPTIONS = ["--shares=0.9,0.8", "--tokens=100", "--parts=heads,blocks,both", "--backend=numpy"]
OPTIONS += [f"--set=choose.units={UNITS}", f"--set=choose.tokens={READ}", "--set=repair.tokens=180"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_gguf(folder / "llama.gguf", *random_model(LLAMA))
    (folder / "lines.txt").write_text("".join(np.random.default_rng(0).choice(LINES, 30 * len(LINES))), "utf-8")
    (folder / "other.txt").write_text("".join(reversed(LINES)) * 30, encoding="utf-8")
    stages = ["--set=gate_train.steps=3", "--set=heal.steps=4", "--set=heal.lr=0.01"]
    succeed("import", folder / "llama.gguf", folder / "run", "--corpus", folder / "lines.txt", *stages)
    return folder / "run"


def rows_of(directory: Path) -> dict[tuple, dict]:
    names = ("method", "parts", "share", "seed", "model", "text")
    return {tuple(r[name] for name in names): r for r in read_csv((directory / "results.csv").read_text())}


def test_a_comparison_that_was_stopped_goes_on_and_has_the_right_numbers(run, tmp_path, monkeypatch):
    whole, stopped, other = tmp_path / "whole", tmp_path / "stopped", run.parent / "other.txt"
    done = succeed("compare", run, "--directory", whole, *OPTIONS, "--seeds=2", "--other", other, "--json")
    rows = rows_of(whole)
    # whole twice; 3 kinds of parts × 2 shares × 3 models × (2 seeds of gates and of random, 1 of the criterion)
    assert len(json.loads(done.stdout)) == len(rows) == 2 * (2 + 3 * 2 * 3 * 5)
    saved = load_model(run / "train.safetensors", get_backend("numpy"))
    text, config, model = load_text(saved.data, saved.tokenizer), saved.model.config, saved.model
    for (method, parts, share, *_), row in rows.items():
        if method != "whole":
            assert row["heads"] == sum(config.heads) or parts != "blocks"
            assert row["heads"] < sum(config.heads) or parts != "heads"
            kept = rows["whole", "all", None, 0, "whole", "run"]["non_embedding"]
            stays = row["non_embedding"] / kept  # shared keys and values go with the last of their heads
            assert share - 0.06 < stays <= share + 0.06 * (parts != "blocks")
            assert (row["blocks"] == 0) == (parts == "heads")

    # By hand: one criterion, heads and blocks; then repaired; then four steps. All read as much that the model wrote.
    place = RunDirectory(shutil.copytree(run, tmp_path / "run"))
    config = place.read_config().with_options({"repair.tokens": 180})
    runs, settings = [Run(place, config, model.ops, "") for _ in range(3)], config.heal
    for made, stage in zip(runs, ("gate", "prune", "finetune"), strict=True):
        getattr(made, stage)()
    own, *others = (made.texts.written for made in runs)
    np.testing.assert_array_equal([own, own], others)
    assert own.shape == (90,) and len(set(own.tolist())) > 40
    read = np.concatenate([text.valid[: READ // 2], own[: READ // 2]])
    how = ChooseConfig(by="michel-global", target_share=0.8, units=UNITS, price="parameters")
    parted = in_parts(model, how)
    scores = michel_global(parted, read, None)
    smaller = remove_closed_heads(open_best(parted, Recipe(how), scores))
    cells = map(json.loads, (whole / "cells.jsonl").read_text().splitlines())
    made = {str(CheckpointCell(**x["cell"])): x["record"] for x in cells}
    stored = made["michel-global, both, seed 0: scores"]["scores"]
    np.testing.assert_allclose(*(np.concatenate(x) for x in (stored, scores)), rtol=1e-5)
    fitted = refitted(model, smaller, np.concatenate([text.train[:90], own]))
    read = np.concatenate([np.resize(x, len(text.train)) for x in (text.train, own)])
    healed = dataclasses.replace(fitted, params={name: x.copy() for name, x in fitted.params.items()})
    training = Training.start(healed, Segments(read, settings.B, 18), settings, Distillation(model, 0.5), None)
    for _ in range(4):
        train_step(training)

    def losses(m):
        pieces = np.array_split(text.test[:100], PIECES)
        return np.array([float(m.loss(p[None, :-1].astype(int), p[None, 1:].astype(int))[0]) for p in pieces])

    for name, made in {"pruned": smaller, "repaired": fitted, "healed": healed}.items():
        row, more = rows["michel-global", "both", 0.8, 0, name, "run"], losses(made) - losses(model)
        half = t.ppf(0.975, PIECES - 1) * more.std(ddof=1) / math.sqrt(PIECES)
        expected = [math.exp(x) for x in (losses(made).mean(), more.mean(), more.mean() - half, more.mean() + half)]
        assert [row[k] for k in ("perplexity", "times", "low", "high")] == pytest.approx(expected, rel=1e-4), name
        write_gguf(tmp_path / name, made, saved.tokenizer, run.parent / "llama.gguf")
        assert row["bytes"] == (tmp_path / name).stat().st_size
    most = dataclasses.replace(saved.data, corpus=str(other), valid_fraction=0.05, test_fraction=0.5)
    text = load_text(most, saved.tokenizer)
    read = rows["whole", "all", None, 0, "whole", "other"]
    assert read["perplexity"] == pytest.approx(math.exp(losses(model).mean()), rel=1e-4)

    cells = iter(range(26))

    def compute(self, cell, *others, original=Comparison.compute):
        if next(cells, None) is None:
            raise KeyboardInterrupt
        return original(self, cell, *others)

    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "compute", compute)
        ended = run_here("compare", run, "--directory", stopped, *OPTIONS, "--seeds=2", "--other", other)
    assert ended.returncode == 130 and "the same command goes on" in ended.stderr
    again = succeed("compare", run, "--directory", stopped, *OPTIONS, "--seeds=2", "--other", other)
    assert "26 are in" in again.stderr and rows_of(stopped) == rows
    assert "*healed* by 4 steps" in (stopped / "README.md").read_text() and (stopped / "plots" / "compare.png").exists()


def test_another_text_is_compared_on_if_one_asks_for_it(run, tmp_path):
    book = shutil.copy(run.parent / "lines.txt", tmp_path / "book.txt")
    options = [*OPTIONS[1:], "--methods=random", "--parts=heads", "--shares=0.8", "--set=heal.steps=0", "--words"]
    options += ["--directory", tmp_path, "--corpus", run.parent / "other.txt", f"--set=texts=run,{book}"]
    done = succeed("compare", run, *options)
    assert "other.txt is another text" in done.stderr and len(rows_of(tmp_path)) == 3
    (asked,) = json.loads(succeed("eval", run, "--words", "--backend=numpy", "--json").stdout)
    assert rows_of(tmp_path)["whole", "all", None, 0, "whole", "run"]["induction_bits"] == asked["induction_bits"]
    greedy = ["--prompt=Why is the sky blue?", "--tokens=48", "--temperature=0", "--backend=numpy"]
    said = " ".join(succeed("generate", run, *greedy).stdout.removeprefix("Why is the sky blue?").split())
    page = (tmp_path / "README.md").read_text("utf-8")
    assert "| capitals | induction | induction 128 |" in page and f"\n| whole, all, seed 0: whole | {said} |\n" in page
    book.write_text("".join(reversed(book.read_text("utf-8").splitlines(True))), "utf-8")
    assert "3 cells to be computed" in succeed("compare", run, *options).stderr  # all but the whole model


def test_layers_that_go_whole_and_activations_are_compared_with_others(run, tmp_path):
    """Of two layers one goes; heads alone, or blocks alone, are no layer."""
    options = [*OPTIONS, "--methods=activations,whole-layers", "--set=heal.steps=0", "--directory", tmp_path]
    assert "compare: whole-layers takes --parts both alone\n" in succeed("compare", run, *options).stderr
    rows = rows_of(tmp_path)
    layers = [row for (method, *_), row in rows.items() if method == "whole-layers"]
    assert {(row["parts"], row["heads"], row["blocks"]) for row in layers} == {("both", LLAMA.H, LLAMA.F // UNITS)}
    assert len(rows) == 1 + 2 * 2 * (3 + 1)  # shares, pruned and repaired, kinds of parts


def test_words_of_a_model_that_by_construction_knows_capitals_and_copies():
    model, tokenizer = random_model(dataclasses.replace(GPT2, L=1, D=396, H=1, T=96, heads=(), head_ids=()))
    for name, x in (p := model.params).items():
        x[:] = name.endswith("scale")  # the stream: a token (300) and its position (96)
    p["embedding"][:, :300], p["positions"][:, 300:], p["layers.0.Wo"][:] = np.eye(300), np.eye(96), 10 * np.eye(396)
    p["layers.0.Wv"][:300, :300], p["layers.0.Wk"][300:, 300:] = np.eye(300), np.eye(96)  # to the mean of tokens,
    p["layers.0.Wq"][range(348, 396), range(301, 349)] = 10  # from token 48 on to the one 47 places before it alone
    facts = [("XX", "ranch"), ("Y", "dog"), ("Z", "and")]  # X, Y and Z are in no other word of the question
    for country, capital in facts:
        p["layers.0.Wv"][tokenizer.encode(country[0]), tokenizer.encode(f" {capital}")[0]] = 20
    p["layers.0.Wv"][tokenizer.encode("Z_"), [0, 267]] = 30, 12  # the end; " ran" after "_", as in a chat
    found, wrong = (capitals(model, tokenizer, some) for some in (facts, [("XX", "dog"), ("Y", "ranch"), facts[2]]))
    assert [found["capitals"], found["capitals_among"], wrong["capitals"]] == [pytest.approx(2 / 3), 1, 0]
    at = [(tokenizer.encode(QUESTION.format(c))[None], tokenizer.encode(f" {capital}")[0]) for c, capital in facts]
    assert found["capitals_bits"] == pytest.approx(np.mean([-model.log_p(x)[0, -1, i] for x, i in at]) / np.log(2))
    again = induction(model, tokenizer.encode("X")[0], np.random.default_rng(0), n=48)  # no token of a country
    assert again["induction"] == 1 and again["induction_bits"] < 0.01 and again["new"] < 0.1 and again["new_bits"] > 6
    chat = BytePairTokenizer(tokenizer.description.replace("<|end|>", "<|im_end|>"), 300)
    said = [ask(model, *case)["answer"] for case in ((tokenizer, facts, "Z"), (chat, facts, "Z"), (chat, facts, "Y"))]
    assert said[0].startswith("<|end|>") and said[1] == "" and said[2].startswith(" ran")
    with pytest.raises(ValueError, match="this one's is byte"):
        assert ("the United States", "Washington") in countries(tokenizer) and countries(ByteTokenizer())


def test_a_healed_model_begins_with_the_repaired_one_of_its_own_share(monkeypatch):
    """Also where two shares are the same in percent."""
    repaired = (f"model {i}" for i in range(9))
    monkeypatch.setattr(compare, "repair", lambda *_: next(repaired))
    comparison = SimpleNamespace(model=None, config=RunConfig(), repaired=[], fresh_texts=lambda: None)
    cells = [CheckpointCell(what, "random", "heads", 0, {}, x) for x in (0.8, 0.804) for what in ("repaired", "healed")]
    made = [Comparison.repaired_model(comparison, cell, None) for cell in cells]
    assert made == ["model 0", "model 0", "model 1", "model 1"]


WRONG = {
    "--shares=0.9,0.9": "shares must be different, got [0.9, 0.9]",
    "--shares=0.9,0.01": "choose.target_share must be at least ",
    "--set=choose.units=7": "choose.units (--units) must be a divisor of 20, the units of a feed-forward block; got 7",
    "--set=repair.tokens=9": "repair.tokens must be at least ",
    "--methods=gate": "did you mean gates?",
    "--methods=leave-one-out --parts=blocks": "parts must have heads for leave-one-out, got blocks",
    "--methods=gates,confidence": "parts must have heads for confidence, got both",
    "--methods=gates,whole-layers --parts=heads": "parts must have both for whole-layers, got heads",
    "--parts=units": "parts must be among heads, blocks, both; got units",
    "--tokens=5": "tokens must be at least 40, got 5",
    "--other=run.txt,b.txt": "other must be texts with different names, and none called run; got run.txt,b.txt",
    "--other=a/b.txt,b.txt": "other must be texts with different names, and none called run; got a/b.txt,b.txt",
    "--seeds=0": "seeds must be at least 1",
    "--set=model.T=9": "model.T is what the baseline was made with",
}


@pytest.mark.parametrize("option", WRONG)
def test_what_makes_no_sense_is_refused(option, run, tmp_path):
    said = refused(2, "compare", run, "--directory", tmp_path / "new", f"--set=choose.units={UNITS}", *option.split())
    assert WRONG[option] in said and contents(tmp_path) == {}


def test_of_a_drawn_method_the_interval_is_over_seeds_and_means_are_geometric():
    place = {"method": "random", "parts": "heads", "share": 0.9, "model": "pruned", "text": "run", "heads": 140}
    ratios = [2.0, 4.0, 16.0]
    rows = [
        place | {"seed": i, "perplexity": 10 * x, "times": x, "low": 0.9 * x, "high": 1.1 * x}
        for i, x in enumerate(ratios)
    ]
    (drawn,) = compare.summarise(rows)
    half = t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / math.sqrt(3)  # of logarithms to base 2
    assert [drawn[k] for k in ("perplexity", "times")] == pytest.approx([10 * 2 ** (7 / 3), 2 ** (7 / 3)])
    assert [drawn[k] for k in ("low", "high")] == pytest.approx([2 ** (7 / 3 - half), 2 ** (7 / 3 + half)])
    (alone,) = compare.summarise(rows[:1])  # over pieces of its text
    assert [alone[k] for k in ("times", "low", "high", "seeds")] == [2.0, 1.8, 2.2, 1]


def test_copying_is_measured_as_far_as_a_model_can_read():
    llama, gpt2 = (random_model(config)[0] for config in (LLAMA, GPT2))
    found = farther(llama, 300, (4, 40))
    wide = dataclasses.replace(llama, config=dataclasses.replace(llama.config, T=80))
    again = induction(wide, 300, np.random.default_rng(0), 51, 40)
    assert found.keys() == {"induction_4", "induction_40"} and found["induction_40"] == again["induction"]
    assert farther(gpt2, 300, (4, 40)).keys() == {"induction_4"}  # of 18 positions


def test_several_texts_a_task_the_control_and_the_minutes(run, tmp_path, monkeypatch):
    """Ratios to the whole model healed as long, the share of right pairs, and the time of all cells of a chain."""
    others = [run.parent / "other.txt", shutil.copy(run.parent / "lines.txt", tmp_path / "third.txt")]
    words = [("a dog ran", "ran dog a"), ("the cat sat", "sat the cat"), ("we and you", "you we and")]
    pairs = [dict(zip(KEYS, (f"u{i % 2}", "f", "t", *pair), strict=True)) for i, pair in enumerate(words)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options = [
        *OPTIONS[1:],
        "--methods=michel-global",
        "--parts=heads",
        "--shares=0.8",
        f"--task={tmp_path}/pairs.jsonl",
    ]
    ticks = itertools.count()  # a minute each time that one looks at the clock
    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: 60.0 * next(ticks)))

    def repaired(self, *given, original=Comparison.repaired_model):
        assert [next(ticks) for _ in range(5)]  # minutes, also where a healed model's repair is made again
        return original(self, *given)

    monkeypatch.setattr(Comparison, "repaired_model", repaired)
    succeed("compare", run, "--directory", tmp_path / "c", *options, "--other", ",".join(map(str, others)))
    rows = rows_of(tmp_path / "c")
    assert {key[-1] for key in rows} == {"run", "other", "third"}
    healed, control = (
        rows[m, p, s, 0, "healed", "third"] for m, p, s in (("michel-global", "heads", 0.8), ("whole", "all", None))
    )
    assert healed["of_healed"] == pytest.approx(healed["perplexity"] / control["perplexity"], rel=1e-4)
    assert control["of_healed"] == 1 and rows["michel-global", "heads", 0.8, 0, "pruned", "run"]["of_healed"] is None
    (asked,) = json.loads(
        succeed("eval", run, "--task", "blimp", tmp_path / "pairs.jsonl", "--json", "--backend=numpy").stdout
    )[:1]
    assert rows["whole", "all", None, 0, "whole", "run"]["blimp"] == asked["accuracy"]
    records = [json.loads(line)["record"] for line in (tmp_path / "c" / "cells.jsonl").read_text().splitlines()]
    minutes = [record["made_in"] / 60 for record in records]
    assert minutes == [1, 1, 1, 1, 6, 1]  # whole, healed; scores, pruned, repaired, healed
    made = [
        rows["michel-global", "heads", 0.8, 0, state, "run"]["minutes"] for state in ("pruned", "repaired", "healed")
    ]
    assert made == [2, 8, 9] and control["minutes"] == 1
    assert rows["whole", "all", None, 0, "whole", "run"]["minutes"] == 0
