"""The options of all commands, as data for `argparse`; options of several commands come first."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from tinyprune.bench import BENCHMARKS, GPUS
from tinyprune.cli.lists import KINDS, backends, corpora, presets, settings
from tinyprune.errors import UsageError
from tinyprune.experiments import STUDIES

# Name and settings of one argument, as `add_argument` takes them, and argcomplete's completer.
Option = dict[str, Any]
Completer = Callable[..., list[str]]


def option(name: str, about: str, completer: Completer | None = None, **settings: Any) -> Option:
    """Return an option with this help. Its value has the type of its default, unless `settings` say otherwise."""
    if type(settings.get("default")) in (int, float):
        settings["type"] = type(settings["default"])
    return {"name": name, "help": about, "completer": completer} | settings


def switch(name: str, about: str) -> Option:
    """Return an option without a value."""
    return option(name, about, action="store_true")


def add_options(parser: argparse._ActionsContainer, options: Iterable[Option | tuple]) -> None:
    """Add options to a parser. Those in a tuple of options exclude each other."""
    for entry in options:
        if isinstance(entry, tuple):
            add_options(parser.add_mutually_exclusive_group(), entry)
        else:
            settings = dict(entry)
            name, completer = settings.pop("name"), settings.pop("completer")
            parser.add_argument(name, **settings).completer = completer


def names_or_files(things: Callable[[], list[dict[str, Any]]], *endings: str) -> Completer:
    """Return a completer for argcomplete: the names of `things`, and files with these endings (none: all files)."""

    def complete(prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        names = [next(iter(record.values())) for record in things()]
        return [*names, *FilesCompleter(endings)(prefix)]

    return complete


def preset(about: str) -> Option:
    """Return --preset."""
    return option("--preset", about, names_or_files(presets, "toml"))


def backend(about: str, **settings: Any) -> Option:
    """Return --backend."""
    return option("--backend", about, lambda **_: [record["backend"] for record in backends()], **settings)


STAGES = ("train", "gate", "prune", "finetune")
PRECISIONS = ("float32", "bf16")  # as config.PRECISIONS, which costs an import
TEXTS = names_or_files(corpora)
MODEL = option("model", "a run's directory (its latest stage) or a checkpoint")
STAGE = option("--stage", "stage of the run (the latest)", choices=STAGES)
SPLIT = option("--split", "which text (%(default)s)", choices=("valid", "test"), default="valid")
CORPUS = option("--corpus", "a corpus's name, a text file, a folder of them, or - (pydoc)", TEXTS)
OTHER = option("--corpus", "where the model's text lies now, or another text", TEXTS)
BACKEND = backend("numba: compiled; numpy: the textbook; cuda, cuda-tf32: a GPU (numba)")
WORDS = switch("--words", "also which capitals a pretrained model knows, and how well it copies")
JSON = switch("--json", "as JSON on standard output")
SETTING = option(
    "--set",
    "any other setting, such as train.steps=500; `tinyprune list settings` explains them all",
    lambda **_: [f"{record['setting']}=" for record in settings()],
    **{"dest": "options", "action": "append", "default": [], "metavar": "TABLE.KEY=VALUE"},
)
RESUME = (
    "continue where the run stopped; settings of a stage that has not begun may be changed, and of one that is "
    "unfinished steps, evaluate_every, checkpoint_every and log_every (--set)"
)
RUN = (
    option("directory", "directory of the run"),
    preset("a preset's name or a .toml file (tiny, or what the run has)"),
    CORPUS,
    option("--tokenizer", "what one token is (character)", choices=("character", "byte", "word")),
    option("--seed", "random seed of initialisation, dropout and gates (0)", type=int),
    SETTING,
    BACKEND,
    switch("--tensorboard", "also write the log for TensorBoard, into the run's folder events"),
    (
        switch("--resume", RESUME),
        switch("--overwrite", "start anew, deleting the results of this stage and later ones"),
    ),
)
GATE = (
    (
        option("--lam", "weight of the L0 loss, a sum over all heads", type=float),
        option("--target-heads", "hold exactly this many heads open, instead of lam", type=int),
        option(
            "--target-parameters",
            "the same for a share of all but the embedding",
            type=float,
            metavar="SHARE",
        ),
    ),
    option("--units", "gates for blocks of so many units of the feed-forward block, too", type=int),
    option(
        "--by",
        "train no gates: open those that a criterion scores highest, such as michel-global",
        metavar="CRITERION",
    ),
)
BASELINE = option("--from", "start from this model, or from a run's baseline", dest="source", metavar="CHECKPOINT")
TEXTS = option(
    "--texts",
    "for gates, repair, healing: run, self (the model writes it), repeats (of random tokens), FILE; commas between",
)
LEFT = switch("--json", "what the stage leaves as JSON on standard output")
LOADED = (MODEL, STAGE, BACKEND)
STUDY = (SETTING, BACKEND, switch("--json", "all rows as JSON on standard output"))
METHODS = "gates, or criteria as for choose.by, some for heads alone or whole layers (%(default)s)"
SHARES = "of the parameters that are no embedding, which stay (%(default)s)"
TYPES = (
    "of a .gguf file's matrices: sliced keeps blocks of the imported file, and changed ones get its quantised type "
    "if they lose nothing by it, else Q8_0; source: its type anyway, f32: float32 (%(default)s)"
)
OPTIONS = {
    "run": [
        option("directory", "directory of the run (runs/PRESET-CORPUS)", nargs="?"),
        *RUN[1:],
        *GATE,
        switch("--json", "the table as JSON on standard output"),
    ],
    "train": (*RUN, LEFT),
    "gate": [*RUN, *GATE, TEXTS, BASELINE, LEFT],
    "prune": [
        *RUN,
        option(
            "--repair-tokens",
            "fit what stays to so many tokens, so that it computes what all did",
            type=int,
        ),
        TEXTS,
        LEFT,
    ],
    "finetune": (*RUN, LEFT),
    "import": [
        option(
            "path",
            "a folder as the Hugging Face Hub has it, or a .gguf file; others than the models above, such as Gemma, "
            "Phi and mixtures of experts, cannot be imported",
        ),
        option("directory", "directory of the run (runs/NAME)", nargs="?"),
        preset("settings of the stages: a preset or a .toml file (pretrained)"),
        CORPUS,
        SETTING,
    ],
    "export": [
        *LOADED,
        option("path", "a new folder for the Hugging Face Hub, or a new .gguf file for llama.cpp"),
        switch("--padded", "zeros where parts were removed, so that all programs know the shapes"),
        option("--type", TYPES, choices=("sliced", "source", "f32"), default="sliced", dest="kind"),
    ],
    "eval": [
        *LOADED,
        OTHER,
        SPLIT,
        option(
            "--precision",
            "of the factors of products (%(default)s)",
            choices=PRECISIONS,
            default="float32",
        ),
        option("--window", "read windows of so many tokens, without memory (T)", type=int),
        option("--stride", "how far each window begins after the one before (window)", type=int),
        option(
            "--task",
            "blimp and a file of its pairs, in place of a text",
            nargs=2,
            metavar=("NAME", "FILE"),
        ),
        switch("--time", "also the milliseconds for 1,000 tokens, of several texts at once"),
        WORDS,
        JSON,
    ],
    "generate": [
        *LOADED,
        option("--prompt", "the text to continue", required=True),
        option("--tokens", "how many tokens to add (%(default)s)", default=300),
        option("--temperature", "0: always take the likeliest (%(default)s)", default=0.8),
        option("--top-k", "draw from the k likeliest tokens only", type=int),
        option("--seed", "random seed of the draws (%(default)s)", default=0),
        switch("--json", "text and tokens a second as JSON on standard output, when all is written"),
    ],
    "heads": [
        *LOADED,
        OTHER,
        SPLIT,
        option("--tokens", "how many of its tokens to read (%(default)s)", default=2000),
        JSON,
        option("--plot", "also draw a map of all heads, as .png, .svg or .pdf", metavar="FILE"),
    ],
    "play": [
        MODEL | {"help": "a run's directory (its baseline) or a checkpoint"},
        option("path", "HTML file (play.html beside the model)", nargs="?", metavar="FILE.html"),
        STAGE | {"help": "stage of the run (train)"},
        BACKEND,
        OTHER,
    ],
    "describe": [
        option("model", "a run's directory or a checkpoint", nargs="?"),
        preset("a preset or a .toml file instead"),
        STAGE,
        SETTING,
        JSON,
    ],
    "gradcheck": [
        option("--op", "only operations whose name begins with NAME", metavar="NAME"),
        option("--mode", "complex where it can, else central", choices=("complex", "central")),
        backend("the backend to check: numba or numpy (%(default)s)", default="numpy"),
        JSON,
    ],
    "experiment": [
        option("study", "what is compared", choices=STUDIES),
        option("--directory", "where results are kept and resumed (runs/STUDY-CORPUS)"),
        preset("model and stages: a preset or a .toml file (study)"),
        CORPUS,
        switch("--quick", "few steps, sizes and seeds: three minutes"),
        option("--seeds", "how many, from the configured one on (3; quick: 2)", type=int),
        option("--shares", "of heads to keep (0.9,0.7,0.5,0.3,0.1; quick: 0.5)", metavar="NUMBERS"),
        option("--methods", "only these, such as gates,random,michel (all)", metavar="NAMES"),
        option(
            "--scope",
            "criteria choose among all heads, or the same share in each layer (%(default)s)",
            choices=("global", "layer"),
            default="global",
        ),
        option("--jobs", "models trained at once (all processors; on a GPU 1)", type=int),
        option("--scheduler", "a Dask cluster, such as tcp://host:8786", metavar="ADDRESS"),
        *STUDY,
    ],
    "compare": [
        option("run_directory", "directory of the run, whose baseline is pruned", metavar="run"),
        option("--directory", "where results are kept and resumed (runs/compare-RUN)"),
        OTHER,
        option(
            "--other",
            "texts that nothing is fitted to, read for the numbers as well; commas between",
            TEXTS,
        ),
        option("--task", "a file of BLiMP's pairs, which every model judges", metavar="FILE"),
        option("--shares", SHARES, metavar="NUMBERS", default="0.9,0.8"),
        option("--methods", METHODS, metavar="NAMES", default="gates,michel-global,random"),
        option(
            "--parts",
            "to remove: heads, blocks, both (%(default)s)",
            metavar="NAMES",
            default="both",
        ),
        option("--tokens", "of each text, read for the numbers (%(default)s)", default=20_480),
        option("--seeds", "how many, of gates and random parts (%(default)s)", default=1),
        WORDS,
        option(
            "--prompt",
            "what all answer, with --words (%(default)s)",
            default="Why is the sky blue?",
        ),
        *STUDY,
    ],
    "atlas": [
        option("run_directory", "directory of the run, whose baseline is read", metavar="run"),
        option("--task", "a file of BLiMP's pairs", metavar="FILE", required=True),
        option("--directory", "where results are kept and resumed (runs/atlas-RUN)"),
        option("--pruned", "a run with fewer parts, whose losses single parts are to predict", metavar="RUN"),
        BACKEND,
        switch("--json", "all rows as JSON on standard output"),
    ],
    "bench": [
        option("benchmark", "what to measure", choices=BENCHMARKS),
        option("--peers", "compare with these: torch, llama.cpp", metavar="NAMES", default=""),
        backend("numba, numpy, cuda, cuda-tf32; cuda-emulated for roofline (numba)"),
        (
            preset("only the shapes of this preset or .toml file"),
            option(
                "--shapes",
                "such as tiny,relative-d128; for generate also a GGUF file or its package",
                metavar="NAMES",
                default="",
            ),
        ),
        option("--rounds", "turns of each contender (%(default)s)", default=9),
        option("--threads", "threads of each contender (all processors)", type=int),
        option("--gpu", "of a roofline (%(default)s)", choices=GPUS, default="h100"),
        JSON,
    ],
    "list": [option("kind", "what to list (these kinds)", nargs="?", choices=KINDS), JSON],
}


def parse_options(options: list[str]) -> dict[str, Any]:
    """Parse `["train.steps=100", "data.corpus=book.txt"]` into a dictionary; a value that is not TOML is a string."""
    parsed = {}
    for given in options:
        name, equals, value = given.partition("=")
        if not equals:
            raise UsageError(f"--set takes TABLE.KEY=VALUE, got {given!r}")
        try:
            parsed[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[name] = value
    return parsed
