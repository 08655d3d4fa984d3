"""The parser: all commands and their options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tinyprune
from tinyprune.bench import BENCHMARKS
from tinyprune.cli.lists import KINDS, list_things
from tinyprune.cli.models import describe, evaluate_model, generate_text, gradcheck, show_heads
from tinyprune.cli.options import (
    add_backend,
    add_corpus,
    add_gate_options,
    add_json,
    add_model_options,
    add_preset,
    add_run_options,
    add_setting,
    add_stage,
)
from tinyprune.cli.pretrained import export_pretrained, import_pretrained
from tinyprune.cli.stages import run_all, run_stage
from tinyprune.cli.studies import bench, compare, experiment
from tinyprune.errors import UsageError, nearest
from tinyprune.experiments import STUDIES

COMPLETION = """Completion of commands, options and names, with the extra "completion" installed:
  bash, zsh   eval "$(register-python-argcomplete tinyprune)"
  fish        register-python-argcomplete --shell fish tinyprune | source
"""


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
            name = unknown[0].partition("=")[0]
            hint = f"; {name} comes after {arguments.command}" if name in known else nearest(name, known, settings)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}", hint)
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = nearest(str(value), action.choices, {"version": "--version"} if action.dest == "command" else None)
            self.error(str(error), hint)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and their options."""
    parser = Parser(
        prog="tinyprune",
        description="Train a small All-attention language model, gate its attention heads, remove those that close,\n"
        "fine-tune: every gradient by hand.",
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

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--quiet", action="store_true", help="print results and errors only")
        return sub

    sub = command("run", run_all, "run all four stages, then write a table, plots and a report")
    add_run_options(sub, needs_directory=False)
    add_gate_options(sub)
    add_json(sub, "the table as JSON on standard output")

    add_run_options(command("train", run_stage, "stage 1: train the baseline"))
    sub = command("gate", run_stage, "stage 2: train gates on every head of the baseline")
    add_run_options(sub)
    add_gate_options(sub)
    about = "start from this model, or from a run's baseline"
    sub.add_argument("--from", dest="source", metavar="CHECKPOINT", help=about)
    add_run_options(command("prune", run_stage, "stage 3: remove the heads that closed"))
    add_run_options(command("finetune", run_stage, "stage 4: train the smaller model a little more"))

    sub = command("import", import_pretrained, "make a run of a pretrained GPT-2 or Llama, which can then be gated")
    sub.add_argument("path", help="a folder as the Hugging Face Hub has it, or a .gguf file")
    sub.add_argument("directory", nargs="?", help="directory of the run (runs/NAME)")
    add_preset(sub, "of which the stages are taken: a preset or a .toml file (pretrained)")
    add_corpus(sub)
    add_setting(sub)

    sub = command("export", export_pretrained, "write a pretrained model, also a pruned one, for transformers")
    add_model_options(sub)
    sub.add_argument("folder", help="a new folder, as the Hugging Face Hub has it")

    sub = command("eval", evaluate_model, "evaluate a model on held-out text, with the memory carried along")
    add_model_options(sub)
    sub.add_argument("--split", choices=("valid", "test"), default="valid", help="which part of the text (%(default)s)")
    add_json(sub)

    sub = command("generate", generate_text, "continue a prompt")
    add_model_options(sub)
    sub.add_argument("--prompt", required=True, help="the text to continue")
    sub.add_argument("--tokens", type=int, default=300, help="how many tokens to add (%(default)s)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0: always take the likeliest (%(default)s)")
    sub.add_argument("--top-k", type=int, help="draw from the k likeliest tokens only")
    sub.add_argument("--seed", type=int, default=0, help="random seed of the draws (%(default)s)")

    sub = command("heads", show_heads, "show what each head attends to, in numbers and as a map of all heads")
    sub.add_argument("model", help="a run's directory (its latest stage) or a checkpoint")
    add_stage(sub)
    sub.add_argument("--split", choices=("valid", "test"), default="valid", help="which part of the text (%(default)s)")
    sub.add_argument("--tokens", type=int, default=2000, help="how many of its tokens to read (%(default)s)")
    add_json(sub)
    sub.add_argument("--plot", metavar="FILE.png", help="also draw a map of all heads")

    sub = command("describe", describe, "count a model's parameters and multiply-adds, part by part")
    sub.add_argument("model", nargs="?", help="a run's directory or a checkpoint")
    add_preset(sub, "a preset or a .toml file instead")
    add_stage(sub)
    add_setting(sub)
    add_json(sub)

    sub = command("gradcheck", gradcheck, "check every operation's gradient, and whole models'")
    sub.add_argument("--op", metavar="NAME", help="only operations whose name begins with NAME")
    about = "how to measure (complex where the backend takes complex numbers, else central)"
    sub.add_argument("--mode", choices=("complex", "central"), help=about)
    add_backend(sub, "the backend to check: numba or numpy (%(default)s)", default="numpy")
    add_json(sub)

    sub = command("experiment", experiment, "a study: train, prune and compare many models, then tables and pictures")
    sub.add_argument("study", choices=STUDIES, help="what is compared")
    sub.add_argument("--directory", help="where results are kept and resumed (runs/STUDY-CORPUS)")
    add_preset(sub, "model and stages: a preset or a .toml file (study)")
    add_corpus(sub)
    sub.add_argument("--quick", action="store_true", help="few steps, sizes and seeds: three minutes")
    sub.add_argument("--seeds", type=int, help="how many seeds, starting with the configured one (3; quick: 2)")
    about = "shares of the heads to keep (0.9,0.7,0.5,0.3,0.1; quick: 0.5)"
    sub.add_argument("--shares", metavar="NUMBERS", help=about)
    about = "tradeoff: only these methods, such as gates,random,michel"
    sub.add_argument("--methods", metavar="NAMES", help=about)
    about = "criteria choose among all heads, or the same share in each layer (%(default)s)"
    sub.add_argument("--scope", choices=("global", "layer"), default="global", help=about)
    sub.add_argument("--jobs", type=int, help="models trained at once (all processors; on a GPU 1)")
    sub.add_argument("--scheduler", metavar="ADDRESS", help="compute on a Dask cluster, such as tcp://host:8786")
    add_setting(sub)
    add_backend(sub)
    add_json(sub, "all rows as JSON on standard output")

    sub = command("compare", compare, "prune a trained model by every method and compare: pruned, repaired, healed")
    sub.add_argument("run_directory", metavar="run", help="directory of the run, whose baseline is pruned")
    sub.add_argument("--directory", help="where results are kept and resumed (runs/compare-RUN)")
    sub.add_argument(
        "--shares", default="0.9,0.8,0.7,0.6,0.5", metavar="NUMBERS", help="of the heads, kept (%(default)s)"
    )
    about = (
        "gates, michel-global, michel, output-difference, magnitude, random, leave-one-out, flap, least-squares (all)"
    )
    sub.add_argument("--methods", metavar="NAMES", help=about)
    sub.add_argument("--tokens", type=int, default=10_240, help="of the test split, read for the numbers (%(default)s)")
    about = "of the validation split, read by criteria (%(default)s)"
    sub.add_argument("--score-tokens", type=int, default=10_240, help=about)
    about = "of the training split, read to fit by least squares what stays (%(default)s)"
    sub.add_argument("--repair-tokens", type=int, default=20_480, help=about)
    about = "tokens of the validation split that leave-one-out reads for every head (%(default)s)"
    sub.add_argument("--sample", type=int, default=2048, help=about)
    sub.add_argument("--seeds", type=int, default=1, help="how many, of gates and random heads (%(default)s)")
    about = "steps of training afterwards, several numbers or 0 for none (those of the run's finetune table)"
    sub.add_argument("--heal", metavar="NUMBERS", help=about)
    sub.add_argument("--heal-methods", metavar="NAMES", help="repair and train only the models of these methods (all)")
    add_setting(sub)
    add_backend(sub)
    add_json(sub, "all rows as JSON on standard output")

    sub = command("bench", bench, "measure speed and memory, alone or against peers, and print ratios")
    sub.add_argument("benchmark", choices=BENCHMARKS, help="what to measure")
    about = "compare with these: torch (matmul always runs against NumPy's BLAS, on a GPU against torch's cuBLAS)"
    sub.add_argument("--peers", default="", metavar="NAMES", help=about)
    add_backend(sub, "the backend to measure: numba, numpy, cuda, cuda-tf32 (numba)")
    what = sub.add_mutually_exclusive_group()
    add_preset(what, "only the shapes of this preset or .toml file")
    what.add_argument("--shapes", default="", metavar="NAMES", help="only these, such as tiny,relative-d128,plain-d256")
    sub.add_argument("--rounds", type=int, help="runs of each contender (as many as the benchmark needs)")
    sub.add_argument("--threads", type=int, help="threads of each contender (all processors)")
    add_json(sub)
    sub.add_argument("--plot", metavar="FILE.png", help="also draw a picture")

    sub = command("list", list_things, "list what there is, in one line each")
    sub.add_argument("kind", nargs="?", choices=KINDS, help="what to list (these kinds)")
    add_json(sub)
    return parser
