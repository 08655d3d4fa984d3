"""Options that several commands have."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from typing import Any

from tinyprune.cli.lists import backends, corpora, presets, settings
from tinyprune.errors import UsageError


def add_run_options(sub: argparse.ArgumentParser, needs_directory: bool = True) -> None:
    """Add the options that every stage takes."""
    about = "directory of the run" if needs_directory else "directory of the run (runs/PRESET-CORPUS)"
    sub.add_argument("directory", nargs=None if needs_directory else "?", help=about)
    add_preset(sub, "a preset's name or a .toml file (tiny, or what the run has)")
    add_corpus(sub)
    sub.add_argument("--tokenizer", choices=("character", "byte", "word"), help="what one token is (character)")
    sub.add_argument("--seed", type=int, help="random seed of initialisation, dropout and gates (0)")
    add_setting(sub)
    add_backend(sub)
    again = sub.add_mutually_exclusive_group()
    about = (
        "continue where the run stopped; settings of a stage that has not begun may be changed, and of one that is "
        "unfinished steps, evaluate_every, checkpoint_every and log_every (--set)"
    )
    again.add_argument("--resume", action="store_true", help=about)
    about = "start anew, deleting the results of this stage and later ones"
    again.add_argument("--overwrite", action="store_true", help=about)


def add_stage(sub: argparse.ArgumentParser) -> None:
    """Add --stage, which selects a stage of the run."""
    about = "stage of the run (the latest)"
    sub.add_argument("--stage", choices=("train", "gate", "prune", "finetune"), help=about)


def add_setting(sub: argparse.ArgumentParser) -> None:
    """Add --set, for settings without an option of their own."""
    about = "any other setting, such as train.steps=500; `tinyprune list settings` explains them all"
    action = sub.add_argument(
        "--set", dest="options", action="append", default=[], metavar="TABLE.KEY=VALUE", help=about
    )
    action.completer = lambda **_: [f"{record['setting']}=" for record in settings()]


def add_preset(sub: argparse._ActionsContainer, about: str) -> None:
    """Add --preset."""
    sub.add_argument("--preset", help=about).completer = names_or_files(presets, "toml")


def add_corpus(sub: argparse.ArgumentParser) -> None:
    """Add --corpus."""
    sub.add_argument("--corpus", help="a corpus's name or a text file (pydoc)").completer = names_or_files(corpora)


def add_backend(sub: argparse.ArgumentParser, about: str = "", default: str | None = None) -> None:
    """Add --backend; by default `kernels.backend.default_backend` chooses."""
    about = about or "numba: compiled; numpy: the textbook; cuda, cuda-tf32: a GPU (numba)"
    action = sub.add_argument("--backend", default=default, help=about)
    action.completer = lambda **_: [record["backend"] for record in backends()]


def add_json(sub: argparse.ArgumentParser, about: str = "as JSON on standard output") -> None:
    """Add --json."""
    sub.add_argument("--json", action="store_true", help=about)


def names_or_files(things: Callable[[], list[dict[str, Any]]], *endings: str) -> Callable[..., list[str]]:
    """Return a completer for argcomplete: the names of `things`, and files with these endings (none: all files)."""

    def complete(prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        names = [next(iter(record.values())) for record in things()]
        return [*names, *FilesCompleter(endings)(prefix)]

    return complete


def add_gate_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of the gate stage."""
    pressure = sub.add_mutually_exclusive_group()
    pressure.add_argument("--lam", type=float, help="weight of the L0 loss, a sum over all heads")
    pressure.add_argument("--target-heads", type=int, help="hold exactly this many heads open, instead of lam")
    sub.add_argument("--objective", choices=("task", "layerwise"), help="what the gates minimise besides")


def add_model_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of commands that use a trained model."""
    sub.add_argument("model", help="a run's directory (its latest stage) or a checkpoint")
    add_stage(sub)
    add_backend(sub)


def parse_options(options: list[str]) -> dict[str, Any]:
    """Parse `["train.steps=100", "data.corpus=book.txt"]` into a dictionary; a value that is not TOML is a string."""
    parsed = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"--set takes TABLE.KEY=VALUE, got {option!r}")
        try:
            parsed[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[name] = value
    return parsed
