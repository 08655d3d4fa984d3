"""The commands that read a pretrained model and write one."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from tinyprune.cli.models import load_saved
from tinyprune.cli.options import parse_options
from tinyprune.io.progress import say


def import_pretrained(arguments: argparse.Namespace) -> None:
    """Run `tinyprune import`."""
    from tinyprune.config import load_preset
    from tinyprune.data.corpora import absolute_corpus
    from tinyprune.model.counting import count_parameters
    from tinyprune.pretrained import read_pretrained
    from tinyprune.runs.directory import RunDirectory
    from tinyprune.runs.importing import check_new, import_run

    config = load_preset(arguments.preset or "pretrained")
    options = parse_options(arguments.options)
    corpus = arguments.corpus or options.get("data.corpus", config.data.corpus)
    options["data.corpus"] = absolute_corpus(corpus)
    if arguments.directory:
        check_new(RunDirectory(arguments.directory))  # before a large file is read
    pretrained = read_pretrained(arguments.path)
    directory = RunDirectory(arguments.directory or Path("runs", pretrained.name))
    with directory.locked():
        model = import_run(pretrained, directory, config, options).model
    run = shlex.quote(str(directory.path))
    say(
        f"import: {pretrained.name}, {model.L} layers of {model.H} heads, {count_parameters(model) / 1e6:.0f} million "
        f'parameters, in {directory.path}; try it: tinyprune generate {run} --prompt "Once upon a time"'
    )


def export_pretrained(arguments: argparse.Namespace) -> None:
    """Run `tinyprune export`."""
    from tinyprune.pretrained import gguf_source, write_hub
    from tinyprune.pretrained.export import padded
    from tinyprune.pretrained.gguf_writer import heads_of_zeros, write_gguf
    from tinyprune.runs.directory import RunDirectory
    from tinyprune.training.checkpoints import load_checkpoint

    saved = load_saved(arguments)
    path = Path(arguments.model)
    first = RunDirectory(path if path.is_dir() else path.parent).checkpoint("train")
    metadata = load_checkpoint(first)[1] if first.exists() else {}
    model = padded(saved.model) if arguments.padded else saved.model
    target = Path(arguments.path)
    if target.suffix != ".gguf":
        write_hub(target, model, saved.tokenizer, metadata.get("positions"))
        say(f"export: {target} holds config.json, model.safetensors and tokenizer.json")
        write_card(target, model, metadata, path)
        return
    write_gguf(target, model, saved.tokenizer, gguf_source(metadata), arguments.kind, metadata.get("positions"))
    zeros = heads_of_zeros(model.config)
    filled = f", which needs {zeros} head{'s' * (zeros > 1)} of zeros for that; an import counts them" if zeros else ""
    say(f"export: {target} has {target.stat().st_size / 1e6:,.1f} MB; llama.cpp reads it{filled}")
    write_card(target, model, metadata, path)


def write_card(target: Path, model: Any, metadata: dict[str, Any], path: Path) -> None:
    """Write the card of an export: README.md in its folder, or beside its file unless another one is there.

    `path` is that of the run or of a stage.
    """
    from tinyprune.config import ModelConfig
    from tinyprune.io.files import replace_file
    from tinyprune.pretrained import gguf_source
    from tinyprune.pretrained.card import Original, card
    from tinyprune.pretrained.export import without_empty_layers
    from tinyprune.runs.directory import RunDirectory

    directory = RunDirectory(path if path.is_dir() else path.parent)
    config = directory.read_config() if directory.started else None
    written = without_empty_layers(model).config
    before = ModelConfig(**metadata["model"]) if metadata else written
    folder = target.parent if target.suffix == ".gguf" else target
    place = folder / "README.md"
    if place.exists():
        place = target.with_suffix(".md")
    if place.exists():
        say(f"export: {place} is there and stays; the model's card was not written")
        return
    original = Original.of(metadata, gguf_source(metadata) if metadata.get("file") else None)
    replace_file(place, card(original, before, written, config, target).encode())
    say(f"export: {place} says what the model is, and how to make it again")
