"""From import to export: a GPT-2 and a Llama that transformers has written, gated, pruned and written back."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import samples
from command import die_in_write, harmless, refused, succeed
from gguf import GGMLQuantizationType, GGUFReader
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune.data import load_text
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import refitted
from tinyprune.model.parts import Parts
from tinyprune.ops.engine import Engine
from tinyprune.runs.directory import load_model
from tinyprune.training import loop
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint

T = 16  # of the 18 positions that the models have
IDS = np.random.default_rng(8).integers(0, 300, (1, T))
SHORT = [f"--set={table}.{key}" for table in ("gate_train", "heal") for key in ("steps=20", "B=2")]
SHORT += [f"--set=model.T={T}", "--set=gate_train.checkpoint_every=5", "--set=repair.tokens=0"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def their(request, tmp_path_factory):
    """A model of transformers and the folder that holds it."""
    folder = tmp_path_factory.mktemp("hub") / request.param
    return samples.theirs(folder, request.param), folder


@pytest.fixture(scope="module")
def run(their, book, tmp_path_factory):
    """A run whose gates were trained; tests must not change it."""
    directory = tmp_path_factory.mktemp("run") / "r"
    succeed("import", their[1], directory, "--corpus", book, *SHORT)
    succeed("gate", directory, "--target-heads=5", "--backend=numpy")
    return directory


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def saved(run, stage):
    return load_model(run / f"{stage}.safetensors", Engine())


def logits(run, stage):
    model = saved(run, stage).model
    return model.forward(IDS)[0][0] @ model.params.get("unembedding", model.params["embedding"]).T


def exported(run, folder, *options):
    """Export a model; return what transformers computes with it."""
    from transformers import AutoModelForCausalLM

    succeed("export", run, folder, *options)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    return samples.their_logits(model, IDS[0])


def test_an_imported_model_is_evaluated_continued_and_written_back(their, run, tmp_path):
    expected = samples.their_logits(their[0], IDS[0])
    assert_allclose(logits(run, "train"), expected, rtol=1e-4, atol=1e-4)
    assert_array_equal(exported(run, tmp_path / "new", "--stage=train"), expected)
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written.get("max_position_embeddings", T + 2) == T + 2
    assert written.get("n_positions", T) == T

    # This is said before the model is looked for.
    assert "holds a run already" in refused(2, "import", tmp_path / "none", run)

    (record,) = json.loads(succeed("eval", run, "--stage=train", "--json", "--backend=numpy").stdout)
    before = saved(run, "train")
    tokens = load_text(before.data, before.tokenizer).valid.astype(int)
    nats = 0.0
    for i in range(0, len(tokens) - 1, T):
        targets = tokens[i + 1 : i + T + 1]
        scores = samples.their_logits(their[0], tokens[i : i + T])[: len(targets)].astype(float)
        nats += (np.log(np.exp(scores).sum(1)) - scores[range(len(targets)), targets]).sum()
    characters = len(before.tokenizer.decode(tokens)) * (len(tokens) - 1) / len(tokens)
    assert characters > 1.1 * len(tokens)
    assert record["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-4)

    said = succeed("generate", run, "--stage=train", "--prompt=heads see", "--tokens=40", "--backend=numpy").stdout
    assert said.startswith("heads see") and len(said) > 30


def test_only_gates_are_trained_and_a_stage_that_died_goes_on_to_the_same_bits(run, copy):
    (before, _), (after, _) = (load_checkpoint(run / f"{stage}.safetensors") for stage in ("train", "gate"))
    for name, x in before.items():
        assert_array_equal(after.pop(name), x, strict=True)
    gates = [f"layers.{i}.log_alpha" for i in range(2)]
    moments = {f"optimizer.{moment}.{name}" for moment in "mv" for name in gates}
    assert {name for name in after if not name.startswith("objective.")} == (
        moments | {"optimizer.steps"} | {f"params.{name}" for name in gates}
    )
    assert sum((after[f"params.{name}"] > 0).sum() for name in gates) == 5
    (copy / "gate.safetensors").unlink()
    die_in_write(loop, 3, "gate", copy, "--resume", "--backend=numpy")
    assert "gate: going on after step 10\n" in succeed("gate", copy, "--resume", "--backend=numpy").stderr
    for name in ("gate.safetensors", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


def prune_to(run, *layers):
    """Leave these heads of each layer open, remove the others; check what the smaller model computes and has."""
    tensors, metadata = load_checkpoint(run / "gate.safetensors")
    for i, heads in enumerate(layers):
        tensors[f"params.layers.{i}.log_alpha"] = np.where(np.isin(range(6), heads), 4, -4).astype(np.float32)
    save_checkpoint(run / "gate.safetensors", tensors, metadata)
    succeed("prune", run, "--overwrite")
    assert_allclose(logits(run, "prune"), logits(run, "gate"), rtol=1e-4, atol=1e-4)
    model = saved(run, "prune").model
    assert model.config.head_ids == layers
    for i, heads in enumerate(layers):
        groups = {h * (model.config.kv_heads or 6) // 6 for h in heads}
        assert model.params[f"layers.{i}.Wq"].shape == (24, 4 * len(heads))
        assert model.params[f"layers.{i}.Wk"].shape == model.params[f"layers.{i}.Wv"].shape == (24, 4 * len(groups))


def test_closed_heads_go_and_the_rest_is_healed(their, copy, tmp_path):
    """A layer may lose all its heads; keys and values that heads share go with the last of them."""
    prune_to(copy, (), (0, 1, 4))
    succeed("finetune", copy, "--backend=numpy")
    assert saved(copy, "finetune").model.config.heads == (0, 3)
    last = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "finetune" and last["step"] == 20
    llama = their[1].name == "llama"
    match = "llama has as many heads in each layer, at least 1, but layer 0 has 0" if llama else "gpt2 has all 6 heads"
    for stage, said in (("finetune", match), ("gate", "this model has gates")):
        assert said in refused(2, "export", copy, tmp_path / "new", f"--stage={stage}")
    assert not (tmp_path / "new").exists()
    shown = exported(copy, tmp_path / "padded", "--stage=prune", "--padded")
    assert_allclose(shown, logits(copy, "prune"), rtol=1e-4, atol=1e-4)
    prune_to(copy, (0, 1, 4, 5), (2, 3, 4, 5))
    if llama:
        found = exported(copy, tmp_path / "new")
        assert_allclose(found, logits(copy, "prune"), rtol=1e-4, atol=1e-4)


def test_a_layer_goes_whole_and_a_folder_is_without_it(their, book, tmp_path):
    run, llama = tmp_path / "run", their[1].name == "llama"
    succeed("import", their[1], run, "--corpus", book, *SHORT, "--set=texts=run")
    succeed("gate", run, "--by=whole-layers", "--units=4", "--target-parameters=0.8", "--backend=numpy")
    succeed("prune", run, "--repair-tokens=400")
    succeed("finetune", run, "--backend=numpy")
    config = saved(run, "finetune").model.config
    assert [sorted(own) for own in (config.heads, config.blocks)] == [[0, 6], [0, 5]]
    for command in (["heads"], ["generate", "--prompt=heads see", "--tokens=9"], ["describe"], ["eval", "--words"]):
        succeed(command[0], run, *command[1:])
    new, found = tmp_path / "new", logits(run, "finetune")
    if llama:
        assert_allclose(exported(run, new), found, rtol=1e-4, atol=1e-4)
        assert json.loads((new / "config.json").read_text())["num_hidden_layers"] == 1
        assert "| layers | 2 | 1 |" in (new / "README.md").read_text("utf-8")
    else:  # x + bo + b2 is not x
        assert f"but layer {config.heads.index(0)} has 0; a folder with --padded" in refused(2, "export", run, new)
    assert_allclose(exported(run, tmp_path / "padded", "--padded"), found, rtol=1e-4, atol=1e-4)


def test_one_kind_of_text_is_warned_of(copy, book, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(Path(book).read_text("utf-8"), "utf-8")
    for texts, warned in (("run", True), (f"run,{other}", False)):
        again = ["gate", copy, "--overwrite", "--target-heads=5", "--backend=numpy", "--texts", texts]
        assert ("of what people wrote only book.txt is read" in succeed(*again).stderr) == warned


def test_a_file_of_llama_cpp_is_imported_again(their, book, copy, tmp_path):
    prune_to(copy, (), (0, 1, 4))
    if their[1].name == "gpt2":
        assert "GGUF files can say models of kind llama, got gpt2" in refused(2, "export", copy, tmp_path / "m.gguf")
        return
    told = succeed("export", copy, tmp_path / "m.gguf", "--type=f32").stderr
    assert " MB; llama.cpp reads it, which needs 1 head of zeros for that; an import counts them" in told
    succeed("import", tmp_path / "m.gguf", tmp_path / "again", "--corpus", book, *SHORT)
    assert sum(saved(tmp_path / "again", "train").model.config.heads) == 1 + sum(
        saved(copy, "prune").model.config.heads
    )
    assert_allclose(logits(tmp_path / "again", "train"), logits(copy, "prune"), rtol=1e-5, atol=1e-5)
    # the blocks of that file are sliced now
    succeed("export", tmp_path / "again", tmp_path / "twice.gguf")
    twice = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "twice.gguf").tensors}
    assert set(twice.values()) == {GGMLQuantizationType.F32}
    (tmp_path / "m.gguf").unlink()
    assert "is no longer there" in succeed("export", tmp_path / "again", tmp_path / "third.gguf").stderr


def test_gates_are_opened_by_scores(their, run, book, tmp_path):
    succeed("import", their[1], tmp_path / "r", "--corpus", book, *SHORT)
    said = succeed(
        "gate", tmp_path / "r", "--by=michel-global", "--units=4", "--target-parameters=0.8", "--backend=numpy"
    )
    assert "michel-global scores all parts on" in said.stderr
    assert saved(tmp_path / "r", "gate").metadata["positions"] == 18  # which an export writes
    assert "already finished" in succeed("gate", tmp_path / "r", "--resume").stderr
    other = refused(2, "gate", tmp_path / "r", "--resume", "--texts=run")
    assert "texts must stay, since stage gate has begun" in other
    succeed("prune", tmp_path / "r", "--repair-tokens=200", "--backend=numpy")
    parts = [Parts(saved(tmp_path / "r", stage).model.config).counts for stage in ("gate", "prune")]
    assert len(parts[0]) == len(parts[1]) == 4 and sum(parts[1]) < sum(parts[0])


WRONG = [
    (["--repair-tokens=200", "--texts=run,typo"], "there is no corpus and no file 'typo'"),
    (["--repair-tokens=40"], f"repair.tokens must be at least {5 * T}, 5 segments of {T}, and so long the texts"),
    (["--repair-tokens=200", "--texts=,"], "texts must be such as run,self; got ','"),
    (["--repair-tokens=0", "--texts=self"], "repair.tokens must be more than 0"),
]


def test_what_stays_is_fitted_to_texts_without_training_gates_again(their, book, copy, tmp_path):
    (tmp_path / "other.txt").write_text("another text of another kind, " * 40)
    texts = f"--texts={book},{tmp_path / 'other.txt'}"
    said = succeed("prune", copy, "--repair-tokens=400", texts, "--backend=numpy").stderr
    assert f"fitted to 400 tokens of {book},{tmp_path / 'other.txt'}" in said
    whole = saved(copy, "train")
    texts = [load_text(replace(whole.data, corpus=str(x)), whole.tokenizer) for x in (book, tmp_path / "other.txt")]
    read = np.concatenate([text.train[:200] for text in texts])
    expected = refitted(whole.model, remove_closed_heads(saved(copy, "gate").model), read)
    pruned = saved(copy, "prune").model
    for name, x in expected.params.items():
        assert_allclose(pruned.params[name], x, rtol=1e-4, atol=1e-5)
    (tmp_path / "other.txt").unlink()
    for stage in ("gate", "prune"):
        assert f"{stage}: already finished" in succeed(stage, copy, "--resume").stderr
    said = succeed("prune", copy, "--overwrite", "--repair-tokens=200", "--texts=", "--backend=numpy").stderr
    assert "fitted to 200 tokens of run,self" in said
    assert "B of stage finetune must be at least 2" in refused(2, "finetune", copy, "--set=heal.B=1")
    for options, said in WRONG:  # nothing is lost
        assert said in harmless(2, copy, "prune", copy, "--overwrite", *options)
    again = refused(2, "prune", copy, "--resume", "--repair-tokens=300")
    assert "repair.tokens must stay, since stage prune has begun" in again
    succeed("prune", copy, "--overwrite", "--repair-tokens=0", "--backend=numpy")
    assert np.abs(saved(copy, "prune").model.params["layers.1.Wo"] - pruned.params["layers.1.Wo"]).max() > 1e-3


def test_what_cannot_be_imported_is_refused(their, run, book, tmp_path):
    new = tmp_path / "new"
    for options, said in (
        (["--set=model.T=19"], "model.T must be at most 18, as many positions as the model was trained with, got 19"),
        (["--set=model.T=99999999"], "model.T must be at most 18, "),
        (["--set=model.D=12"], "model.D is that of the model in the file; of these settings only model.T can be"),
        (["--set=data.tokenizer=byte"], "data.tokenizer is that of the model"),
        (["--set=model.T=0"], "model.T must be at least 1, got 0"),
        (["--corpus=nowhere.txt"], "there is no corpus and no file 'nowhere.txt'"),
    ):
        assert said in harmless(2, tmp_path, "import", their[1], new, "--corpus", book, *options)
    assert "holds a run already; give another directory" in harmless(2, run, "import", their[1], run, *SHORT)
