"""The card of an exported model: what was removed, how to use it and how to make it again."""

import re
import tomllib

import pytest
import samples
from command import succeed
from gguf import GGUFWriter

from tinyprune.config import RunConfig
from tinyprune.model.counting import count_parameters
from tinyprune.ops.engine import Engine
from tinyprune.pretrained.card import UNKNOWN, Original
from tinyprune.pretrained.gguf_writer import write_gguf
from tinyprune.runs.directory import RunDirectory, load_model

SHORT = ["--set=gate_train.steps=3", "--set=gate_train.B=2", "--set=model.T=16", "--set=repair.tokens=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, book):
    """A run without a quarter of its parameters, of a file that says its licence."""
    folder = tmp_path_factory.mktemp("card")
    write_gguf(folder / "small.gguf", *samples.random_model(samples.LLAMA))
    succeed("import", folder / "small.gguf", folder / "run", "--corpus", book, *SHORT)
    succeed("gate", folder / "run", "--units", "4", "--target-parameters", "0.75", "--backend=numpy")
    succeed("prune", folder / "run", "--backend=numpy")
    return folder / "run"


def test_a_card_says_what_was_removed_and_how_to_do_it_again(run, tmp_path, book):
    told = succeed("export", run, tmp_path / "pruned.gguf").stderr
    assert f"{tmp_path / 'README.md'} says what the model is" in told
    card = (tmp_path / "README.md").read_text("utf-8")
    before, after = (load_model(run / f"{stage}.safetensors", Engine()).model.config for stage in ("train", "prune"))
    for what, whole, here in (
        ("attention heads", sum(before.heads), sum(after.heads)),
        ("blocks of 4 units", before.L * before.F // 4, sum(after.blocks)),
        ("parameters", count_parameters(before), count_parameters(after)),
    ):
        assert (f"| {what} | {whole:,} | {here:,} |" in card and here < whole) or what == "attention heads"
    assert f"Heads by layer: {', '.join(map(str, after.heads))}." in card
    settings = tomllib.loads(re.search(r"```toml\n(.*?)```", card, re.DOTALL)[1])
    again, own = RunConfig.from_dict(settings), RunDirectory(run).read_config()
    assert again.to_dict() | {"data": 0} == own.to_dict() | {"data": 0}
    assert "tinyprune import small.gguf RUN" in card and str(run.parent) not in card
    assert "-m pruned.gguf" in card and card.startswith("---\nlicense: other\n") and "not known" in card


def test_a_card_never_takes_another_files_place(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert f"{tmp_path / 'a.md'} says what the model is" in succeed("export", run, tmp_path / "a.gguf").stderr
    (tmp_path / "b.md").write_text("mine, too")
    assert f"{tmp_path / 'b.md'} is there and stays" in succeed("export", run, tmp_path / "b.gguf").stderr
    assert [(tmp_path / name).read_text() for name in ("README.md", "b.md")] == ["mine", "mine, too"]


def test_the_licence_is_the_originals(tmp_path):
    """In a folder of the Hub it stands in README.md, in a GGUF file among its entries."""
    (tmp_path / "hub").mkdir()
    metadata = {"file": str(tmp_path / "hub"), "source": "small"}
    assert Original.of(metadata, None) == Original("small", metadata["file"], UNKNOWN)
    (tmp_path / "hub" / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Small\n")
    assert Original.of(metadata, None).licence == "mit"
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_license("apache-2.0")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    assert Original.of({"file": str(tmp_path / "m.gguf")}, tmp_path / "m.gguf").licence == "apache-2.0"
