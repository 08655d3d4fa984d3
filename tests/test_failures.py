"""A failure is reported in one line, with exit status 2 for bad use and 1 otherwise, and harms no file."""

import os
import re
import resource
import shlex
import shutil
from pathlib import Path

import pytest
from command import MODEL, contents, files_up_to, harmless, refused, run_here, settings, succeed, tinyprune

from tinyprune.ops.engine import Engine
from tinyprune.runs.directory import RunDirectory
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


READERS = {"run": ["--resume"], "gate": ["--overwrite"], "eval": ["--stage=train"], "describe": []}
READERS |= {"generate": ["--stage=train", "--prompt=1"]}


@pytest.mark.parametrize("command", READERS)
def test_a_broken_checkpoint(command, run):
    """Other damages than one bit are in training/test_checkpoints.py."""
    checkpoint = run / "train.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    said = harmless(1, run, command, checkpoint if command == "describe" else run, *READERS[command])
    assert said.startswith(f"{checkpoint} was altered after it was written")
    assert "use another checkpoint, or train again" in said


def test_a_checkpoint_whose_tokenizer_has_more_tokens_than_its_model(run):
    """Its prompts and texts would have tokens out of range."""
    tensors, metadata = load_checkpoint(run / "finetune.safetensors")
    metadata["tokenizer"]["characters"] += "\U0001f600"
    save_checkpoint(run / "finetune.safetensors", tensors, metadata)
    for arguments in (["eval", run], ["generate", run, "--prompt=\U0001f600"], ["run", run, "--resume"]):
        said = harmless(1, run, *arguments)
        assert "finetune.safetensors is no checkpoint of a model of this version" in said
        assert "its tokenizer has 27 entries, its model 26" in said


def test_a_checkpoint_of_another_stage(run, tmp_path):
    said = harmless(2, tmp_path, "gate", tmp_path / "new", "--from", run / "gate.safetensors")
    assert said == f"{run / 'gate.safetensors'} has gates already; start from a checkpoint without"
    shutil.copy(run / "train.safetensors", run / "prune.safetensors")
    said = harmless(1, run, "finetune", run, "--overwrite")
    assert said == f"{run / 'prune.safetensors'} is of stage train; put back the one of prune"


def test_no_such_run_or_checkpoint(finished, tmp_path):
    nowhere = tmp_path / "nowhere"
    for command in (["eval", "--quiet"], ["generate", "--prompt=1"], ["describe"]):
        said = harmless(2, tmp_path, *command, nowhere)
        assert said == f"{nowhere} is neither the directory of a run nor a .safetensors checkpoint"
        said = harmless(1, tmp_path, *command, f"{nowhere}.safetensors")
        assert said == f"there is no checkpoint {nowhere}.safetensors; check the name, or train first"
    assert f"{tmp_path} holds no checkpoint; start with: tinyprune train" in harmless(2, tmp_path, "eval", tmp_path)
    said = harmless(2, tmp_path, "run", nowhere, "--resume")
    assert said == f"{nowhere} holds no run to resume; leave out --resume to start one"


def test_a_stage_whose_predecessor_is_missing(run, tmp_path):
    for stage, before in (("gate", "train"), ("prune", "gate"), ("finetune", "prune")):
        new = tmp_path / "new run"
        said = harmless(2, tmp_path, stage, new)
        assert said == f"{new} has no stage {before} yet; do it with: tinyprune {before} '{new}'"
    (run / "gate.safetensors").unlink()
    assert "has no stage gate yet" in harmless(2, run, "prune", run, "--overwrite")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--set=data.corpus=", "corpus must be the path of a file or a folder, got ''"),
        ("--set=nonsense", "--set takes TABLE.KEY=VALUE, got 'nonsense'"),
        ("--set=model.V=5", "model.V is 5, but the tokenizer of book.txt has 26 entries; add --set model.V=0"),
        ("--corpus=nowhere.txt", "data.corpus: there is no corpus and no file 'nowhere.txt'; give one of pydoc, "),
        ("--frobnicate", "unrecognized arguments: --frobnicate; see tinyprune run --help"),
        ("--lam=1 --target-heads=2", "not allowed with argument"),
    ],
)
def test_a_setting_that_cannot_be(option, said, book, tmp_path):
    given = ["--corpus", book, *settings(MODEL), *option.split()]
    assert said in harmless(2, tmp_path, "run", tmp_path / "run", *given)


CONTENTS = [(b"[train]\nsteps = ", "Invalid value (at end of document)")]
CONTENTS += [(b"[training]\nsteps = 3", "unknown table or key 'training'")]
CONTENTS += [(b"# caf\xe9", "'utf-8' codec can't decode byte 0xe9")]


@pytest.mark.parametrize(("content", "said"), CONTENTS)
def test_a_settings_file_that_cannot_be(content, said, run, tmp_path):
    """It is given as a preset, and as the configuration of a run."""
    mine = tmp_path / "mine.toml"
    mine.write_bytes(content)
    complaint = harmless(2, tmp_path, "train", tmp_path / "new", "--preset", mine)
    assert f"{mine}: " in complaint and said in complaint
    shutil.copy(mine, run / "config.toml")
    complaint = harmless(2, run, "run", run, "--resume")
    assert f"{run / 'config.toml'}: " in complaint and said in complaint


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prine"], "argument COMMAND: invalid choice: 'prine'"),
        (["train"], "the following arguments are required: directory; see tinyprune train --help"),
        (["describe", "runs/mine", "--preset=tiny"], "give a model, or --preset and --set, not both"),
        (["train", ""], "argument directory must not be empty"),
        (["eval", "run", "--corpus="], "argument --corpus must not be empty"),
        (["gradcheck", "--op=quantum"], "no operation begins with 'quantum'"),
        (["--quiet", "run"], "unrecognized arguments: --quiet; see tinyprune run --help; --quiet comes after run"),
    ],
)
def test_a_command_line_that_cannot_be(command, said):
    assert refused(2, *command).startswith(said)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("trian", "train"),
        ("train RUN --set model.kind=all-atention", "all-attention"),
        ("train RUN --over", "--overwrite"),  # no abbreviation of it
        ("train RUN --stpes=5", "--set train.steps=…"),
        ("gate RUN --steps 5", "--set gate_train.steps=…"),
        ("train RUN --set train.stpes=5", "steps"),
        ("experiment tradeoff --methods gate,random", "gates"),
    ],
)
def test_what_was_meant(command, meant, tmp_path):
    said = harmless(2, tmp_path, *command.replace("RUN", str(tmp_path / "run")).split())
    assert said.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt=Жa\n"], "the vocabulary of 26 characters lacks 'Ж'; leave them out, or train with data.tokenizer"),
        (["--prompt="], "--prompt must hold at least one token, got an empty text"),
        ([], "the following arguments are required: --prompt"),
        (["--prompt=1", "--temperature=nan"], "--temperature must be at least 0, got nan"),
        (["--prompt=1", "--top-k=0"], "--top-k must be at least 1, got 0"),
        (["--prompt=1", "--tokens=0"], "--tokens must be at least 1, got 0"),
    ],
)
def test_a_prompt_or_an_option_that_cannot_be(options, said, finished):
    assert said in harmless(2, finished, "generate", finished, *options)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"too short for a batch. " * 35, ["--set=train.B=50"], "one step needs B \u00b7 T + 1 = 50 \u00b7 16 + 1"),
        (b"caf\xe9 " * 500, [], "not UTF-8 text: byte 0xe9 at offset 3; if it is text, convert it, say with: iconv"),
        (b"no test split. " * 500, ["--set=data.test_fraction=0"], "the test split of book has 0 tokens"),
    ],
)
def test_a_text_that_cannot_be(content, options, said, tmp_path):
    corpus = tmp_path / "book"
    corpus.write_bytes(content)
    given = ["--corpus", corpus, *settings(MODEL), *options]
    assert said in harmless(2, tmp_path, "run", tmp_path / "run", *given)


def test_a_text_that_changed(book, tmp_path):
    corpus, run = Path(shutil.copy(book, tmp_path)), tmp_path / "run"
    succeed("train", run, "--corpus", corpus, *settings(MODEL, steps=2))
    text = corpus.read_text("utf-8")
    for changed in (text.replace("heads", "shade"), text[:-1], text + "Ж"):
        corpus.write_text(changed, "utf-8")
        for arguments in (["train", run, "--resume"], ["gate", run], ["eval", run]):
            said = harmless(2, run, *arguments)
            assert said.startswith("the text 'book.txt' with which the model was trained (sha256 ")
            assert said.endswith("near its run; put that text back, say where it is with --corpus, or start a new run")
    corpus.unlink()
    assert f" is not at {corpus}, nor near its run; " in harmless(2, run, "gate", run)


def test_a_disk_that_is_full_when_a_checkpoint_is_saved(run):
    """The checkpoint before stays, and once there is space the run ends as if nothing had happened."""
    whole = contents(run)
    (run / "finetune.safetensors").unlink()
    before = contents(run)
    with files_up_to(20_000):
        said = refused(1, "finetune", run, "--resume")
    assert said.startswith(f"cannot write checkpoint {run / 'finetune.safetensors'}: ")
    assert said.endswith("File too large; what was there before is untouched; free some space")
    after = contents(run)
    assert before.pop("metrics.jsonl").startswith(after.pop("metrics.jsonl")) and after == before
    succeed("finetune", run, "--resume")
    assert contents(run) == whole


@pytest.mark.parametrize(
    ("size", "file"), [(500, "config.toml"), (8_000, "metrics.jsonl"), (2_000, "plots/losses.png")]
)
def test_a_disk_that_is_full_when_another_file_is_written(size, file, run, book, tmp_path):
    if file.startswith("plots"):
        arguments = ["--resume"]
    else:
        run = tmp_path / "new"
        long = settings(steps=200, checkpoint_every=1000, evaluate_every=1000)
        arguments = ["--corpus", book, "--backend=numpy", *long]
    before = contents(run)
    with files_up_to(size):
        said = refused(1, "run", run, *arguments)
    assert str(run / file) in said and "File too large; " in said and "; free some space" in said
    assert contents(run).items() >= before.items()
    assert not list(run.rglob("*.tmp"))


def test_folders_that_are_made_are_said_and_go_again_if_the_command_is_refused(tmp_path, monkeypatch):
    new = tmp_path / "a" / "b" / "run"
    done = run_here("train", new, "--set=nonsense")
    assert done.stderr.splitlines()[0] == f"tinyprune: new folder {tmp_path / 'a'}, and in it the run {new}"
    assert done.returncode == 2 and not (tmp_path / "a").exists()
    monkeypatch.chdir(tmp_path)
    assert RunDirectory("-x").path == tmp_path / "-x"  # no command takes it for an option


def test_directories_that_cannot_be_written(book, tmp_path):
    given = ["--corpus", book, *settings(MODEL)]
    assert refused(2, "run", book, *given) == f"{book} is a file; give the directory of a run"
    said = refused(1, "run", book / "run", *given)
    assert said.startswith(f"cannot write run {book / 'run'}: Not a directory")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:
        locked = Path("/proc/self")  # where root may not write either
    said = refused(1, "run", locked / "run", *given)
    assert said.startswith(f"cannot write run {locked / 'run'}: ")
    assert "; make sure that its directory " in said


@pytest.mark.parametrize(
    ("command", "unbuffered"), [(["describe"], ""), (["generate", "--prompt=1", "--backend=numpy"], "1")]
)
def test_an_output_that_takes_nothing(command, unbuffered, finished):
    """The disk after `>` is full, or the reader after `|` has gone."""
    command = [command[0], finished, *command[1:]]
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        assert refused(1, *command, stdout=full, env=environment) == "[Errno 28] No space left on device"
    for each, given in ((command, environment), (["--help"], {"PYTHONUNBUFFERED": ""})):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            done = tinyprune(*each, stdout=pipe, env=given)
        assert (done.returncode, done.stderr) == (1, "")


def test_a_loss_that_is_not_a_number(book, tmp_path):
    """The stage that fails comes after the baseline, and has saved one checkpoint. The advice helps."""
    run = tmp_path / "run"
    options = settings(MODEL, checkpoint_every=1)
    wild = ["--set=gate_train.lr=1e30", "--set=gate_train.clip=0", "--set=gate_train.evaluate_every=0"]
    said = refused(1, "run", run, "--corpus", book, *options, *wild)
    assert said.startswith("gate: loss is nan in step 2; ")
    assert f"{run / 'gate.safetensors'} holds the last checkpoint; lower lr " in said
    assert " [gate_train] " in said
    saved = contents(run)
    assert "gate: loss is nan in step 2; " in refused(1, "run", run, "--resume")
    assert contents(run) == saved
    succeed("gate", run, "--overwrite", "--set=gate_train.lr=1e-3")

    new = tmp_path / "new"
    said = refused(1, "train", new, "--corpus", book, *settings(MODEL), "--set=train.lr=1e30", "--set=train.clip=0")
    assert said.startswith("train: loss is nan in step 2; no checkpoint has been saved yet; lower lr ")
    config = new / "config.toml"
    content = config.read_text("utf-8")
    config.write_text(content.replace("lr = 1e+30 ", "lr = 1e-3 "), "utf-8")
    succeed(*shlex.split(said.split("go on with: tinyprune ")[1]))


def test_a_model_that_is_too_large(book, tmp_path):
    """For this process, whose limit the machine's memory does not tell."""
    limit = 1 << 30
    given = ["--corpus", book, "--backend=numpy", *settings(MODEL | {"L": 1, "D": 11_000, "T": 1, "M": 1})]
    options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))}
    said = refused(1, "train", tmp_path / "run", *given, **options)
    assert said.startswith("out of memory: Unable to allocate ")
    assert said.endswith("make B, T, M, D, L or the vocabulary smaller")


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("option", ["model.D=16000", "model.M=1000000"])
def test_a_size_that_does_not_fit_is_refused_at_once(option, on_device, book, tmp_path, monkeypatch):
    small, large = ("gpu_memory", "memory_bytes") if on_device else ("memory_bytes", "gpu_memory")
    monkeypatch.setattr(f"tinyprune.runs.run.{small}", lambda: 8e9)
    monkeypatch.setattr(f"tinyprune.runs.run.{large}", lambda: 1e15)
    monkeypatch.setattr(Engine, "on_device", on_device)
    said = harmless(2, tmp_path, "train", tmp_path / "run", "--corpus", book, "--backend=numpy", "--set", option)
    assert re.fullmatch(r"stage train takes about [\d,]+ GB of memory for [\d,]+ parameters and B = \d+, .*", said)
    assert said.endswith("and there are 8; make the model or its batch smaller")


def test_small_surprises(book, tmp_path):
    said = succeed("train", tmp_path / "run", "--corpus", book, *settings(MODEL, steps=2, warmup=5)).stderr
    assert "train: the learning rate rises over 5 steps, more than there are" in said
    assert re.search(r"train: 2 steps of .*, about \d+ s(?: while [^;]+)?; [\d,]+ parameters, about \d+ MB\n", said)
    said = harmless(2, tmp_path, "heads", "nowhere", "--plot=x.jpgg")  # before anything is read
    assert said == "--plot must be a file that ends in .png, .svg, .pdf; got 'x.jpgg'"
