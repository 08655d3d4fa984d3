"""`tinyprune atlas`: a small Llama judges pairs without each head and without each layer's units."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import harmless, refused, succeed
from scipy.stats import spearmanr

from tinyprune.experiments import atlas
from tinyprune.experiments.pictures import plot_atlas
from tinyprune.experiments.results import read_csv
from tinyprune.kernels.backend import get_backend
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained.blimp import KEYS, blimp
from tinyprune.pretrained.gguf_writer import write_gguf
from tinyprune.runs.directory import load_model

sys.path.append(str(Path(__file__).parents[1] / "pretrained"))
from samples import LINES, LLAMA, random_model

WORDS = ["a", "the", "dog", "cat", "saw", "ran", "and", "we", "you", "they", "then", "gone"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of a model of 2 layers with 6 heads each, one that has lost some, and 200 pairs of 4 paradigms."""
    folder = tmp_path_factory.mktemp("llama")
    write_gguf(folder / "llama.gguf", *random_model(LLAMA))
    (folder / "lines.txt").write_text("".join(np.random.default_rng(0).choice(LINES, 900)), "utf-8")
    succeed("import", folder / "llama.gguf", folder / "run", "--corpus", folder / "lines.txt")
    small = ["--from", folder / "run", "--by=michel-global", "--units=4", "--target-parameters=0.4"]
    succeed("gate", folder / "small", *small, "--backend=numpy")
    succeed("prune", folder / "small", "--backend=numpy", "--repair-tokens=0")
    rng = np.random.default_rng(1)
    sentences = [" ".join(rng.choice(WORDS, 5)) for _ in range(400)]
    groups = [(f"u{i % 4}", f"f{i % 2}", f"p{i % 2}") for i in range(200)]
    pairs = [dict(zip(KEYS, (*groups[i], *sentences[2 * i : 2 * i + 2]), strict=True)) for i in range(200)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return folder


def test_a_part_is_left_out_alone_and_the_atlas_of_a_stopped_study_is_the_same(folder, tmp_path):
    arguments = ["atlas", folder / "run", "--task", folder / "pairs.jsonl", "--backend=numpy"]
    done = succeed(*arguments, "--directory", tmp_path / "whole", "--json", "--pruned", folder / "small")
    rows, saved = json.loads(done.stdout), load_model(folder / "run" / "train.safetensors", get_backend("numpy"))
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    whole = blimp(saved.model, saved.tokenizer, pairs)
    assert len(rows) == 14 * (1 + 2 + 2)
    right = {}
    for layer, head in [(layer, head) for layer in range(2) for head in (*range(6), "units")]:
        params = {name: x.copy() for name, x in saved.model.params.items()}
        if head == "units":
            params[f"layers.{layer}.ffn.W2"][:] = 0
        else:
            params[f"layers.{layer}.Wo"][4 * head : 4 * head + 4] = 0
        right[layer, head] = own = blimp(Transformer(saved.model.config, params), saved.tokenizer, pairs)
        for row in (r for r in rows if (r["layer"], r["head"]) == (layer, head)):
            keys = {"all": "", "field": "field", "phenomenon": "linguistics_term"}
            group = np.array([row["level"] == "all" or p[keys[row["level"]]] == row["name"] for p in pairs])
            assert row["accuracy"] == pytest.approx(own[group].mean())
            assert row["change"] == pytest.approx(own[group].mean() - whole[group].mean())
            assert (row["lost"], row["won"]) == (sum(whole[group] > own[group]), sum(own[group] > whole[group]))
    assert len({tuple(own) for own in right.values()}) > 10  # parts differ
    (tmp_path / "stopped").mkdir()
    cells = (tmp_path / "whole" / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "stopped" / "cells.jsonl").write_text("".join(cells[:5]) + cells[5][:40])
    succeed(*arguments, "--directory", tmp_path / "stopped")
    tables = [(tmp_path / name / "parts.csv").read_bytes() for name in ("whole", "stopped")]
    assert tables[0] == tables[1] and len(cells) == 15

    small = load_model(folder / "small" / "prune.safetensors", get_backend("numpy"))
    config, found = small.model.config, read_csv((tmp_path / "whole" / "pruned.csv").read_text())
    after = blimp(small.model, small.tokenizer, pairs)
    for row in (r for r in found if r["level"] == "paradigm"):
        group = np.array([pair["UID"] == row["name"] for pair in pairs])
        single = {place: own[group].mean() - whole[group].mean() for place, own in right.items()}
        lost = sum(single[layer, h] for layer in range(2) for h in range(6) if h not in config.head_ids[layer])
        lost += sum(single[layer, "units"] * (1 - config.blocks[layer] / 5) for layer in range(2))
        assert row["predicted"] == pytest.approx(lost)
        assert row["change"] == pytest.approx(after[group].mean() - whole[group].mean())
    rank = spearmanr(*np.transpose([(r["predicted"], r["change"]) for r in found if r["level"] == "paradigm"]))
    page = (tmp_path / "whole" / "README.md").read_text("utf-8")
    assert f"and {rank.statistic:.2f} over 4 paradigms" in page and "A removed head changes" in page


def test_the_test_of_two_models_counts_only_pairs_on_which_they_differ():
    assert atlas.mcnemar(0, 0) == 1 and atlas.mcnemar(3, 3) == 1
    assert atlas.mcnemar(0, 5) == pytest.approx(2 / 2**5) == atlas.mcnemar(5, 0)
    assert atlas.mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)


def test_the_picture_has_a_column_for_each_part_and_red_for_a_loss():
    parts = [(layer, head) for layer in range(3) for head in (0, 1)] + [(layer, "units") for layer in range(3)]
    changes = np.random.default_rng(0).uniform(-0.1, 0.05, (9, 4))
    rows = [
        {"layer": layer, "head": head, "level": "phenomenon", "name": f"p_{n}", "change": changes[i, n]}
        for i, (layer, head) in enumerate(parts)
        for n in range(4)
    ]
    heads, units, scale = plot_atlas(rows).axes
    np.testing.assert_allclose(heads.images[0].get_array(), 100 * changes[:6].T)
    np.testing.assert_allclose(units.images[0].get_array(), 100 * changes[6:].T)
    r, _, b, _ = heads.images[0].cmap(heads.images[0].norm(-9))
    assert r > b and scale.get_ylabel() == "points of accuracy"
    assert [label.get_text() for label in heads.get_yticklabels()] == ["p 0", "p 1", "p 2", "p 3"]


def test_bad_use_is_one_line(folder, tmp_path):
    (tmp_path / "half.jsonl").write_text('{"UID": "u"}\n')
    given = ["atlas", folder / "run", "--task"]
    assert "line 1 of" in harmless(2, tmp_path, *given, tmp_path / "half.jsonl", "--directory", tmp_path / "a")
    assert "--task" in refused(2, "atlas", folder / "run")
    write_gguf(tmp_path / "other.gguf", *random_model(replace(LLAMA, L=1, heads=(), head_ids=())))
    succeed("import", tmp_path / "other.gguf", tmp_path / "other", "--corpus", folder / "lines.txt")
    options = [*given, folder / "pairs.jsonl", "--directory", tmp_path / "a", "--pruned", tmp_path / "other"]
    assert "pruned must be a run of the same baseline, with L, D, H, F = 2, 24, 6, 20" in refused(2, *options)
