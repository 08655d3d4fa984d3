"""The command line: it parses arguments, calls the package and prints the results."""

from __future__ import annotations

import argparse
import codecs
import itertools
import os
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tinyprune.bench import BENCHMARKS
from tinyprune.errors import TinypruneError, UsageError
from tinyprune.experiments import STUDIES


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like the rest of the package: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and their options."""
    parser = Parser(
        prog="tinyprune",
        description="Train a small All-attention language model, gate its attention heads, remove those that close, "
        "fine-tune: every gradient by hand.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    sub = command("run", run_all, "run all four stages, then write a table, plots and a report")
    add_run_options(sub, needs_directory=False)
    add_gate_options(sub)
    sub.add_argument("--json", action="store_true", help="the table as JSON on standard output")

    add_run_options(command("train", run_stage, "stage 1: train the baseline"))
    sub = command("gate", run_stage, "stage 2: train gates on every head of the baseline")
    add_run_options(sub)
    add_gate_options(sub)
    about = "start from this model, or from a run's baseline"
    sub.add_argument("--from", dest="source", metavar="CHECKPOINT", help=about)
    add_run_options(command("prune", run_stage, "stage 3: remove the heads that closed"))
    add_run_options(command("finetune", run_stage, "stage 4: train the smaller model a little more"))

    sub = command("eval", evaluate_model, "evaluate a model on held-out text, with the memory carried along")
    add_model_options(sub)
    sub.add_argument("--split", choices=("valid", "test"), default="valid", help="which part of the text (%(default)s)")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")

    sub = command("generate", generate_text, "continue a prompt")
    add_model_options(sub)
    sub.add_argument("--prompt", required=True, help="the text to continue")
    sub.add_argument("--tokens", type=int, default=300, help="how many tokens to add (%(default)s)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0: always take the likeliest (%(default)s)")
    sub.add_argument("--top-k", type=int, help="draw from the k likeliest tokens only")
    sub.add_argument("--seed", type=int, default=0, help="random seed of the draws (%(default)s)")

    sub = command("describe", describe, "count a model's parameters and multiply-adds, part by part")
    sub.add_argument("model", nargs="?", help="a run's directory or a checkpoint")
    sub.add_argument("--preset", help="a preset or a .toml file instead")
    add_stage(sub)
    add_setting(sub)
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")

    sub = command("gradcheck", gradcheck, "check every operation's gradient, and whole models'")
    sub.add_argument("--op", metavar="NAME", help="only operations whose name begins with NAME")
    about = "how to measure (complex where the backend takes complex numbers, else central)"
    sub.add_argument("--mode", choices=("complex", "central"), help=about)
    sub.add_argument("--backend", default="numpy", help="the backend to check: numba or numpy (%(default)s)")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")

    sub = command("experiment", experiment, "a study: train, prune and compare many models, then tables and pictures")
    sub.add_argument("study", choices=STUDIES, help="what is compared")
    sub.add_argument("--directory", help="where results are kept and resumed (runs/STUDY-CORPUS)")
    sub.add_argument("--preset", help="model and stages: a preset or a .toml file (study; architecture: N = 512)")
    sub.add_argument("--corpus", help="a corpus's name or a text file (pydoc)")
    sub.add_argument("--quick", action="store_true", help="few steps, sizes and seeds: three minutes")
    sub.add_argument("--seeds", type=int, help="how many seeds, starting with the configured one (3; quick: 2)")
    about = "shares of the heads to keep (0.9,0.7,0.5,0.3,0.1; quick: 0.5)"
    sub.add_argument("--shares", metavar="NUMBERS", help=about)
    sub.add_argument("--methods", metavar="NAMES", help="tradeoff: only these methods, such as gates,random,michel")
    about = "criteria choose among all heads, or the same share in each layer (%(default)s)"
    sub.add_argument("--scope", choices=("global", "layer"), default="global", help=about)
    sub.add_argument("--jobs", type=int, help="models trained at once (all processors; on a GPU 1)")
    sub.add_argument("--scheduler", metavar="ADDRESS", help="compute on a Dask cluster, such as tcp://host:8786")
    add_setting(sub)
    add_backend(sub)
    sub.add_argument("--json", action="store_true", help="all rows as JSON on standard output")

    sub = command("bench", bench, "measure speed and memory, alone or against peers, and print ratios")
    sub.add_argument("benchmark", choices=BENCHMARKS, help="what to measure")
    about = "compare with these: torch (matmul always runs against NumPy's BLAS, on a GPU against torch's cuBLAS)"
    sub.add_argument("--peers", default="", metavar="NAMES", help=about)
    sub.add_argument("--backend", help="the backend to measure: numba, numpy, cuda, cuda-tf32 (numba)")
    about = "cuda: report what the compiler makes of every kernel; needs no GPU"
    sub.add_argument("--compile-only", action="store_true", help=about)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--preset", help="only the shapes of this preset or .toml file")
    what.add_argument("--shapes", default="", metavar="NAMES", help="only these, such as tiny,relative-d128,plain-d256")
    sub.add_argument("--rounds", type=int, help="runs of each contender (as many as the benchmark needs)")
    sub.add_argument("--threads", type=int, help="threads of each contender (all processors)")
    sub.add_argument("--json", action="store_true", help="as JSON on standard output")
    sub.add_argument("--plot", metavar="FILE.png", help="also draw a picture")
    return parser


def add_run_options(sub: argparse.ArgumentParser, needs_directory: bool = True) -> None:
    """Add the options that every stage takes."""
    about = "directory of the run" if needs_directory else "directory of the run (runs/PRESET-CORPUS)"
    sub.add_argument("directory", nargs=None if needs_directory else "?", help=about)
    sub.add_argument("--preset", help="a preset's name or a .toml file (tiny, or what the run has)")
    sub.add_argument("--corpus", help="a corpus's name or a text file (pydoc)")
    sub.add_argument("--tokenizer", choices=("character", "byte", "word"), help="what one token is (character)")
    sub.add_argument("--seed", type=int, help="random seed of initialisation, dropout and gates (0)")
    add_setting(sub)
    add_backend(sub)
    again = sub.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue where the run stopped")
    about = "start anew, deleting the results of this stage and later ones"
    again.add_argument("--overwrite", action="store_true", help=about)


def add_stage(sub: argparse.ArgumentParser) -> None:
    """Add --stage, which selects a stage of the run."""
    about = "stage of the run (the latest)"
    sub.add_argument("--stage", choices=("train", "gate", "prune", "finetune"), help=about)


def add_setting(sub: argparse.ArgumentParser) -> None:
    """Add --set, for settings without an option of their own."""
    about = "any other setting, such as train.steps=500; a run's config.toml lists and explains them all"
    sub.add_argument("--set", dest="options", action="append", default=[], metavar="TABLE.KEY=VALUE", help=about)


def add_backend(sub: argparse.ArgumentParser) -> None:
    """Add --backend."""
    about = "numba: compiled; numpy: the textbook; cuda, cuda-tf32: a GPU (%(default)s)"
    sub.add_argument("--backend", default="numba", help=about)


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


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line, by their names in the configuration."""
    named = {
        "data.corpus": arguments.corpus,
        "data.tokenizer": arguments.tokenizer,
        "seed": arguments.seed,
        "gate.lam": getattr(arguments, "lam", None),
        "gate.target_heads": getattr(arguments, "target_heads", None),
        "gate.objective": getattr(arguments, "objective", None),
    }
    given = {name: value for name, value in named.items() if value is not None}
    if "gate.lam" in given:
        given["gate.target_heads"] = None  # lam replaces a target that the run had
    return given | parse_options(arguments.options)


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


def open_run(arguments: argparse.Namespace, stages: tuple[str, ...]):
    """Return the run that the arguments name, prepared for `stages`."""
    from tinyprune.config import load_preset
    from tinyprune.kernels.backend import get_backend
    from tinyprune.runs.directory import STAGES, RunDirectory
    from tinyprune.runs.run import Run

    preset, path = arguments.preset or "tiny", arguments.directory
    if path is None:
        corpus = load_preset(preset).with_options(overrides(arguments)).data.corpus
        path = Path("runs", f"{Path(preset).stem}-{Path(corpus).stem}")
    directory, ops = RunDirectory(path), get_backend(arguments.backend)
    source = getattr(arguments, "source", None)
    source = None if source is None else Path(source)
    if source is not None and source.is_dir():
        source = RunDirectory(source).checkpoint("train")
    if arguments.resume and not directory.started:
        raise UsageError(f"{directory.path} holds no run to resume; leave out --resume to start one")
    present = [stage for stage in STAGES[STAGES.index(stages[0]) :] if directory.checkpoint(stage).exists()]
    if present and not arguments.resume and not arguments.overwrite:
        raise UsageError(
            f"{directory.path} has stage {present[-1]} already: add --resume to go on or to see its report, "
            "--overwrite to start anew, or give another directory"
        )
    config = directory.read_config() if directory.started and not arguments.preset else load_preset(preset)
    again = ["tinyprune", arguments.command, str(directory.path), "--resume"]
    again += [] if arguments.backend == "numba" else ["--backend", arguments.backend]
    run = Run(directory, config, ops, shlex.join(again))
    if source is not None and not arguments.resume:
        run.adopt(source)
    run.config = run.config.with_options(overrides(arguments))
    run.prepare(stages, arguments.resume, arguments.overwrite)
    return run


def run_all(arguments: argparse.Namespace) -> None:
    """Run `tinyprune run`."""
    from tinyprune.report import summarise, write_report
    from tinyprune.runs.directory import STAGES

    run = open_run(arguments, STAGES)
    if not arguments.resume:
        run.announce()
    for stage in STAGES:
        getattr(run, stage)(arguments.resume)
    records = summarise(run)
    write_report(run, records)
    print_records(records, arguments.json)


def run_stage(arguments: argparse.Namespace) -> None:
    """Run `tinyprune train`, `gate`, `prune` or `finetune`."""
    run = open_run(arguments, (arguments.command,))
    getattr(run, arguments.command)(arguments.resume)


def load_saved(arguments: argparse.Namespace):
    """Load the model that the arguments name."""
    from tinyprune.kernels.backend import get_backend
    from tinyprune.progress import say
    from tinyprune.runs.directory import RunDirectory, load_model

    path, ops = Path(arguments.model), get_backend(getattr(arguments, "backend", "numpy"))
    if path.suffix == ".safetensors":
        if arguments.stage:
            raise UsageError("--stage goes with the directory of a run, not with a checkpoint")
        return load_model(path, ops)
    if not path.is_dir():
        raise UsageError(f"{path} is neither the directory of a run nor a .safetensors checkpoint")
    directory = RunDirectory(path)
    stage = arguments.stage or directory.latest_stage()
    saved = load_model(directory.checkpoint(stage), ops)
    if not saved.metadata.get("finished"):
        say(f"stage {stage} of {path} is not finished: this is its model after step {saved.metadata.get('step')}")
    return saved


def evaluate_model(arguments: argparse.Namespace) -> None:
    """Run `tinyprune eval`."""
    import numpy as np

    from tinyprune.data import load_text
    from tinyprune.report import milliseconds_per_1k_tokens, stage_record
    from tinyprune.warmup import announced

    saved = load_saved(arguments)
    text = load_text(saved.data, saved.tokenizer, digest=saved.digest)
    # an overflow ends as NaN, which is reported
    with announced(saved.model.ops), np.errstate(over="ignore", invalid="ignore"):
        (ms,) = milliseconds_per_1k_tokens([saved.model], text.valid)
        record = stage_record(saved.metadata["stage"], saved.model, text, ms, arguments.split)
    print_records([record | {"split": arguments.split}], arguments.json)


def generate_text(arguments: argparse.Namespace) -> None:
    """Run `tinyprune generate`: print the prompt, then each token as soon as it is drawn."""
    import numpy as np

    from tinyprune.model.generation import generate
    from tinyprune.progress import say
    from tinyprune.warmup import announced

    for name, low in (("tokens", 1), ("temperature", 0), ("top_k", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    saved = load_saved(arguments)
    prompt = saved.tokenizer.encode(arguments.prompt)
    if saved.tokenizer.kind == "word" and saved.tokenizer.unknown in prompt:
        say("the prompt has words that the model does not know: they are read as <unk>")
    if not prompt.size:
        raise UsageError("--prompt must hold at least one token, got an empty text")
    rng = np.random.default_rng(arguments.seed)
    options = {"temperature": arguments.temperature, "top_k": arguments.top_k}
    tokens = generate(saved.model, prompt, arguments.tokens, rng, **options)
    with announced(saved.model.ops), np.errstate(over="ignore", invalid="ignore"):  # as in `evaluate_model`
        tokens = itertools.chain([next(tokens)], tokens)
    # The tokenizer itself puts spaces between words.
    print(arguments.prompt.rstrip(" ") if saved.tokenizer.kind == "word" else arguments.prompt, end="", flush=True)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces(saved.tokenizer, int(prompt[-1]), tokens):
            print(piece, end="", flush=True)
    print()


def pieces(tokenizer: Any, before: int, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of each token as it comes; `before` is the token before the first.

    The text depends on the neighbours: words are separated by a space except after the end of a line, and the bytes of
    one character are printed together.
    """
    if tokenizer.kind == "byte":
        yield from codecs.iterdecode((bytes([token]) for token in tokens), "utf-8", errors="replace")
        return
    for token in tokens:
        yield tokenizer.decode([before, token])[len(tokenizer.decode([before])) :]
        before = token


def describe(arguments: argparse.Namespace) -> None:
    """Run `tinyprune describe`."""
    import dataclasses

    from tinyprune.config import load_preset
    from tinyprune.model.counting import count_parts, head_part

    if arguments.model and (arguments.preset or arguments.options):
        raise UsageError("give a model, or --preset and --set, not both")
    if arguments.model:
        config = load_saved(arguments).model.config
    else:
        run = load_preset(arguments.preset or "tiny").with_options(parse_options(arguments.options))
        config = run.model
        if not config.V:
            from tinyprune.data import load_text

            config = dataclasses.replace(config, V=load_text(run.data).tokenizer.V)
    parts = [dataclasses.asdict(part) for part in count_parts(config)]  # the embedding comes first
    numbers = ("parameters", "multiply_adds_per_token")
    total = {"part": "whole model"} | {key: sum(part[key] for part in parts) for key in numbers}
    apart = {"part": "whole model, embedding apart"} | {key: total[key] - parts[0][key] for key in numbers}
    print_records([*parts, total, apart, dataclasses.asdict(head_part(config))], arguments.json)


def gradcheck(arguments: argparse.Namespace) -> None:
    """Run `tinyprune gradcheck`: print each operation's worst argument; the exit status is 1 if a gradient is wrong."""
    from tinyprune.gradcheck import check_all
    from tinyprune.kernels.backend import get_backend
    from tinyprune.warmup import announced

    ops = get_backend(arguments.backend)
    with announced(ops):
        worst = check_all(arguments.op, arguments.mode, ops)
    if not worst:
        raise UsageError(f"no operation begins with {arguments.op!r}; `tinyprune gradcheck` lists all")
    print_records(worst, arguments.json)
    wrong = [record["operation"] for record in worst if not record["passed"]]
    if wrong:
        raise TinypruneError(f"wrong gradients: {', '.join(wrong)}")


def experiment(arguments: argparse.Namespace) -> None:
    """Run `tinyprune experiment`: print the summary, or with --json every row."""
    from tinyprune.experiments.grid import dask_cluster, local_processes
    from tinyprune.experiments.results import summarise
    from tinyprune.experiments.running import make_plan, run_study

    if arguments.scheduler and arguments.jobs:
        raise UsageError("--jobs is for this machine's processes; a Dask cluster has as many as its workers")
    options = parse_options(arguments.options)
    if arguments.corpus:
        options = {"data.corpus": arguments.corpus} | options
    sizes = {name: getattr(arguments, name) for name in ("seeds", "scope", "backend")}
    if arguments.shares is not None:
        try:
            sizes["shares"] = [float(share) for share in arguments.shares.split(",")]
        except ValueError as error:
            said = f"--shares takes numbers with commas between them, got {arguments.shares!r}"
            raise UsageError(said) from error
    if arguments.methods is not None:
        sizes["methods"] = [name.strip() for name in arguments.methods.split(",")]
    plan = make_plan(arguments.study, arguments.preset, options, arguments.quick, **sizes)
    quick = "-quick" if arguments.quick else ""
    preset = f"-{Path(arguments.preset).stem}" if arguments.preset else ""
    name = f"{arguments.study}{preset}-{Path(plan.config.data.corpus).stem}{quick}"
    cluster = arguments.scheduler
    workers = dask_cluster(cluster) if cluster else local_processes(arguments.jobs, arguments.backend)
    rows = run_study(arguments.study, plan, arguments.directory or Path("runs", name), workers, not cluster)
    print_records(rows if arguments.json else summarise(rows), arguments.json)


def bench(arguments: argparse.Namespace) -> None:
    """Run `tinyprune bench`."""
    from tinyprune.bench.command import make_options, run_benchmark, text_output
    from tinyprune.tables import json_table

    if arguments.plot and arguments.compile_only:
        raise UsageError("--plot draws speeds, and --compile-only measures none")
    backend = arguments.backend or ("cuda" if arguments.benchmark == "cuda" else None)
    shapes = arguments.preset or arguments.shapes
    sizes = {name: getattr(arguments, name) for name in ("rounds", "threads", "compile_only")}
    options = make_options(backend, arguments.peers, shapes, **sizes)
    records = run_benchmark(arguments.benchmark, options)
    print(json_table(records) if arguments.json else text_output(records))
    if arguments.plot:
        from tinyprune.bench.figures import plot_benchmark
        from tinyprune.plots import save_figure

        save_figure(plot_benchmark(records), arguments.plot)


def print_records(records: list[dict[str, Any]], as_json: bool) -> None:
    """Print the table as text or as JSON."""
    from tinyprune.tables import json_table, text_table

    print(json_table(records) if as_json else text_table(records))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):  # show "?" for what the terminal's encoding lacks, rather than fail
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            arguments = build_parser().parse_args(argv)
            arguments.run(arguments)
        finally:
            # A closed output is noticed here, and not only when Python exits.
            print(end="", flush=True)
    except TinypruneError as error:
        return complain(error, error.exit_status)
    except KeyboardInterrupt:
        return complain("interrupted; every checkpoint is whole, --resume goes on from the last", 130)
    except BrokenPipeError:  # the reader has gone (`| head`)
        give_up_output()
        return 1
    except OSError as error:
        give_up_output()
        return complain(error, 1)
    except MemoryError as error:
        return complain(f"out of memory: {error}; make B, T, M, D, L or the vocabulary smaller", 1)
    return 0


def complain(message: object, status: int) -> int:
    """Print one line on standard error, as an error unless the user stopped it (status 130); return `status`."""
    kind = "" if status == 130 else "error: "
    print(f"tinyprune: {kind}{' '.join(str(message).split())}", file=sys.stderr)
    return status


def give_up_output() -> None:
    """Discard what is left for a closed standard output, or Python would report it once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
