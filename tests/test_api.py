"""The method as functions: the bits of the command line, models that go from one to the other, and what they print."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import DROPOUT, MODEL, TRAINING, refused, succeed

import tinyprune as tp
from tinyprune.errors import UsageError
from tinyprune.runs.directory import RunDirectory
from tinyprune.training.checkpoints import load_checkpoint

OPTIONS = TRAINING | {"seed": 0}


@pytest.fixture(scope="module")
def stages(book) -> dict[str, tp.Transformer]:
    """The models of the run `finished`, made in Python."""
    text = tp.load_text(book)
    model = tp.train(tp.new_model(text, **MODEL | DROPOUT), text, **OPTIONS)
    gated = tp.gate(model, text, target_heads=3, **OPTIONS)
    small = tp.prune(gated)
    pruned = {name: x.copy() for name, x in small.params.items()}
    tp.finetune(small, text, **OPTIONS)
    return {"train": model.params, "gate": gated.params, "prune": pruned, "finetune": small.params, "text": text} | {
        "models": {"train": model, "gate": gated, "finetune": small}
    }


def test_python_and_the_command_line_train_the_same_bits(stages, finished):
    for stage in ("train", "gate", "prune", "finetune"):
        tensors, _ = load_checkpoint(finished / f"{stage}.safetensors")
        found = {name: x for name, x in tensors.items() if name.startswith("params.")}
        assert found.keys() == {f"params.{name}" for name in stages[stage]}
        assert all(np.array_equal(stages[stage][name.removeprefix("params.")], x) for name, x in found.items()), stage


@pytest.mark.parametrize(("stage", "saved", "commands"), [
    ("train", "train", [["gate", "--target-heads=3"], ["prune"], ["finetune"]]),
    ("gate", "gate", [["prune"], ["finetune"]]),
    ("finetune", "prune", [["finetune"]]),
])  # fmt: skip
def test_a_model_goes_on_in_the_command_line_and_back(stage, saved, commands, stages, tmp_path):
    model, run = stages["models"][stage], tmp_path / "mine"
    assert tp.save(model, run) == run / f"{saved}.safetensors"
    again = tp.load(run)
    assert all(np.array_equal(again.params[name], x) for name, x in model.params.items())
    assert tp.evaluate(again, stages["text"]) == tp.evaluate(model, stages["text"])
    for command, *options in commands:
        succeed(command, run, *options, f"--set={'gate_train' if command == 'gate' else 'heal'}.steps=3")
    last = tp.load(run)
    assert sum(last.config.heads) == 3 and RunDirectory(run).latest_stage() == "finetune"
    tp.finetune(last, stages["text"], steps=2, teacher=stages["models"]["train"])
    file = tp.save(last, tmp_path / "last.safetensors")
    assert succeed("generate", file, "--prompt=1 heads", "--tokens=5").stdout.startswith("1 heads")
    text = tp.generate(last, "1 heads", tokens=5)
    assert text.startswith("1 heads") and len(text) == len("1 heads") + 5


def test_gates_for_units_and_a_share_of_the_parameters(book):
    text = tp.load_text(str(book))
    sizes = MODEL | {"kind": "transformer-xl", "persistent": "softmax", "N": 0, "F": 16}
    model = tp.new_model(text, **sizes)
    before = {name: x.copy() for name, x in model.params.items()}
    small = tp.prune(tp.gate(model, text, target_parameters=0.7, units=4, steps=3, B=2))
    assert all(np.array_equal(model.params[name], x) for name, x in before.items())
    sizes = [sum(p.parameters for p in tp.count_parts(m.config)[2:]) for m in (small, model)]
    assert 0.5 < sizes[0] / sizes[1] <= 0.7 and small.config.U == 4


def test_numbers_and_words(stages):
    model, text = stages["models"]["train"], stages["text"]
    log_p = model.log_p(text.test[None, :9])
    assert log_p.shape == (1, 9, 26) and np.allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)
    assert re.fullmatch(r"Transformer\(all-attention, 2 layers, 4 of 4 heads, [\d,]+ parameters; \w+\)", repr(model))
    assert ", gates; " in repr(stages["models"]["gate"])
    assert ", 3 of 4 heads, " in repr(stages["models"]["finetune"])
    assert re.fullmatch(r"Text\(book.txt: train [\d,]+, valid \d+, test \d+ tokens, of 26 characters\)", repr(text))
    sizes = {"persistent": "softmax", "N": 0, "F": 8, "U": 2, "M": 0, "mask": "causal", "init_gain": 1.0}
    units = tp.new_model(text, kind="gpt2", **sizes)
    assert "16 of 16 blocks of 2 units" in repr(units)
    assert tp.load_text(tp.DataConfig(corpus=text.data.corpus, tokenizer="byte")).tokenizer.kind == "byte"
    assert not {"Any", "annotations", "importlib"} & set(dir(tp))
    assert {"train", "gate", "ops"} <= set(dir(tp))
    shown = "import tinyprune as tp; print(dir(tp.training), tp.training.step.__name__, hasattr(tp.method, 'nope'))"
    said = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout
    assert "'step'" in said and said.endswith(" tinyprune.training.step False\n")


def test_what_is_refused_and_how(stages, tmp_path):
    model, text = stages["models"]["train"], stages["text"]
    ids = text.test[:8]
    for wrong in (ids, [[1, 2]], ids[None, :0], "text"):
        with pytest.raises(ValueError, match=r"ids must be an array of token numbers \(B, T\), both at least 1, got"):
            model.forward(wrong)
    with pytest.raises(ValueError, match="ops must be an engine, as from get_backend, got 'numba'"):
        tp.Transformer(model.config, model.params, ops="numba")
    with pytest.raises(UsageError, match="the model does not know its tokenizer; make it"):
        tp.save(tp.Transformer(model.config, model.params), tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("abc" * 200, "utf-8")
    tp.save(tp.prune(stages["models"]["gate"]), tmp_path / "run")
    with pytest.raises(UsageError, match="run has stage prune already; give another directory"):
        tp.save(model, tmp_path / "run")
    with pytest.raises(UsageError, match="run has a run of a model of other sizes; give another directory"):
        one = tp.gate(tp.new_model(text, **MODEL | {"L": 1}), text, target_heads=1, steps=1)
        tp.save(tp.prune(one), tmp_path / "run")
    with pytest.raises(UsageError, match="text has a vocabulary of 3 tokens, the model one of 26"):
        tp.train(model, tp.load_text(other), steps=1)
    with pytest.raises(UsageError, match=r"unknown key train\.stps"):
        tp.train(model, text, stps=3)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = tp.nope
    assert "holds no checkpoint" in refused(2, "eval", tmp_path)


@pytest.mark.parametrize("train", [tp.finetune, tp.train, tp.gate])
def test_gates_that_have_met_their_target_are_not_trained_on(train, stages):
    with pytest.raises(UsageError, match=r"^the model has gates, which training would move, .*; call prune first$"):
        train(stages["models"]["gate"], stages["text"], steps=1)


def test_as_many_tokens_are_not_the_same_tokens(stages, book, tmp_path):
    model, text, path = stages["models"]["finetune"], stages["text"], tmp_path / "capitals.txt"
    path.write_text(book.read_text("utf-8").upper().replace("8", "ß"), "utf-8")
    other = tp.load_text(path)
    assert other.tokenizer.V == text.tokenizer.V
    small = {"steps": 1, "B": 2}
    for call in (
        lambda: tp.train(model, other, **small),
        lambda: tp.gate(model, other, target_heads=1, **small),
        lambda: tp.finetune(model, other, **small),
        lambda: tp.finetune(model, text, teacher=tp.new_model(other, **MODEL), **small),
        lambda: tp.evaluate(model, other),
    ):
        with pytest.raises(UsageError, match=r"^text has another tokenizer than the (model|teacher), though as many"):
            call()
    assert tp.evaluate(model, tp.load_text(book)) == tp.evaluate(model, text)


def test_a_callback_hears_of_each_step_and_may_stop_the_training(stages):
    text, heard = stages["text"], []

    def hear(step: int, losses: dict[str, float]) -> None:
        heard.append((step, losses))

    model = tp.new_model(text, **MODEL)
    whole = tp.train(tp.new_model(text, **MODEL), text, steps=3, B=2)
    tp.train(model, text, steps=3, B=2, callback=hear)
    assert all(np.array_equal(whole.params[name], x) for name, x in model.params.items())
    gated = tp.gate(model, text, target_heads=3, steps=2, B=2, callback=hear)
    tp.finetune(tp.prune(gated), text, steps=1, B=2, teacher=model, callback=hear)
    names = 3 * [{"loss"}] + 2 * [{"loss", "l0", "lam"}]
    assert [step for step, _ in heard] == [1, 2, 3, 1, 2, 1]
    assert [set(losses) for _, losses in heard[:5]] == names and "loss" in heard[5][1]
    bits = []

    def stop(step: int, losses: dict[str, float]) -> None:
        bits.append(tp.evaluate(model, text, "valid"))
        if step == 2:
            raise StopIteration

    model = tp.new_model(text, **MODEL)
    with pytest.raises(StopIteration):
        tp.train(model, text, steps=3, B=2, callback=stop)
    assert tp.evaluate(model, text, "valid") == bits[1] != bits[0]
    # the loss of a step is that of its batch before the update
    first = tp.new_model(text, **MODEL)
    ids, targets, _ = tp.data.Segments(text.train, 2, first.config.T).batch(0)
    loss, _, _ = first.loss(ids, targets, None)
    assert heard[0][1]["loss"] == pytest.approx(float(loss), rel=1e-6)


REFUSED = {
    "text must be of type Text, as from load_text; got 'plain.txt'": lambda m, t: tp.train(m, "plain.txt"),
    "model must be of type Transformer, as from new_model or load; got Text(": lambda m, t: tp.evaluate(t, m),
    "text must be of type Text": lambda m, t: tp.new_model("plain.txt"),
    "teacher must be of type Transformer or None": lambda m, t: tp.finetune(m, t, teacher=t),
    "callback must be of type Callable or None; got 3": lambda m, t: tp.train(m, t, callback=3),
    "split must be one of train, valid, test; got 'foo'": lambda m, t: tp.evaluate(m, t, "foo"),
    "stage must be one of train, gate, prune, finetune; got 'foo'": lambda m, t: tp.load("run", "foo"),
    "model must be of type Transformer, as from new_model or load; got None": lambda m, t: tp.prune(None),
    "for a new one load_text(DataConfig(corpus=…, tokenizer=\"byte\")); got 'byte'": (
        lambda m, t: tp.load_text("pydoc", tokenizer="byte")
    ),
    "config must be of type DataConfig or str or Path; got None": lambda m, t: tp.load_text(None),
    "corpus must be the path of a file or a folder, got 'a text, …": lambda m, t: tp.load_text("a text, " * 99),
    "corpus must be the path of a file or a folder, got ''": lambda m, t: tp.load_text(""),
    "corpus must be the path of a file or a folder, got '' ": lambda m, t: tp.load_text(tp.DataConfig(corpus="")),
    "path must be the path of a file or a folder, got ''": lambda m, t: tp.load(""),
    "path must be the path of a file or a folder, got '' ": lambda m, t: tp.save(m, ""),
    "prompt must be of type str; got None": lambda m, t: tp.generate(m, None),
    "tokens must be at least 0, got -1": lambda m, t: tp.generate(m, "1", -1),
    "temperature must be a finite number, got nan": lambda m, t: tp.generate(m, "1", temperature=math.nan),
    "top_k must be of type int or None; got 1.5": lambda m, t: tp.generate(m, "1", top_k=1.5),
    "seed must be at least 0, got -1": lambda m, t: tp.new_model(t, seed=-1),
    " parameters and B = 1, and there are ": lambda m, t: tp.new_model(t, D=200_000),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(said, stages):
    with pytest.raises(UsageError, match=f"^[^\n]*{re.escape(said.strip(' …'))}[^\n]*$"):
        REFUSED[said](stages["models"]["train"], stages["text"])


def test_a_stage_that_needs_more_memory_than_there_is(stages, monkeypatch):
    monkeypatch.setattr("tinyprune.runs.run.memory_bytes", lambda: 1e5)
    with pytest.raises(UsageError, match=r"^stage train takes about 0 GB of memory for 4,330 parameters and B = 2, "):
        tp.train(stages["models"]["train"], stages["text"], **OPTIONS)


def test_the_lines_of_the_readme_run(book, tmp_path, monkeypatch, capsys):
    """With fewer steps."""
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(import tinyprune as tp\n.*?)```", readme, re.DOTALL)
    short = block.replace("steps=900", "steps=2").replace("target_heads=16", "target_heads=16, steps=2")
    short = short.replace("tp.prune(gated), text", "tp.prune(gated), text, steps=2").replace('"Once"', '"1 heads"')
    assert short.count("steps=2") == 3
    shutil.copy(book, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)
    assert re.fullmatch(r"1 heads.* \(1, 64, 26\)\n", capsys.readouterr().out, re.DOTALL)
    assert sum(tp.load("runs/python").config.heads) == 16
    assert len(block.strip().splitlines()) == 8
