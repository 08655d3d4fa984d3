"""The commands that train: all stages of a run, or one of them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyprune.cli.options import parse_options
from tinyprune.errors import UsageError
from tinyprune.io.tables import print_records


def run_all(arguments: argparse.Namespace) -> None:
    """Run `tinyprune run`."""
    from tinyprune.runs.directory import STAGES
    from tinyprune.runs.report import summarise, write_report

    with open_run(arguments, STAGES) as run:
        if not arguments.resume:
            run.announce()
        for stage in STAGES:
            getattr(run, stage)(arguments.resume)
        records = summarise(run)
        write_report(run, records)
    print_records(records, arguments.json)


def run_stage(arguments: argparse.Namespace) -> None:
    """Run `tinyprune train`, `gate`, `prune` or `finetune`."""
    from tinyprune.runs.report import finished_record

    stage = arguments.command
    with open_run(arguments, (stage,)) as run:
        getattr(run, stage)(arguments.resume)
    if arguments.json:
        print_records([finished_record(run, stage)], as_json=True)


@contextmanager
def open_run(arguments: argparse.Namespace, stages: tuple[str, ...]) -> Iterator[Any]:
    """Hold the run that the arguments name, against other processes, and prepare it for `stages`."""
    from tinyprune.config import load_preset
    from tinyprune.data.corpora import absolute_corpus
    from tinyprune.kernels.backend import default_backend, get_backend
    from tinyprune.method.texts import MADE
    from tinyprune.runs.directory import STAGES, RunDirectory
    from tinyprune.runs.run import Run

    preset, path = arguments.preset or "tiny", arguments.directory
    if path is None:
        corpus = load_preset(preset).with_options(overrides(arguments)).data.corpus
        path = Path("runs", f"{Path(preset).stem}-{Path(corpus).stem}")
    directory = RunDirectory(path)
    with directory.locked():
        ops = get_backend(arguments.backend or default_backend())
        source = getattr(arguments, "source", None)
        if source is not None and Path(source).is_dir():
            source = RunDirectory(source).checkpoint("train")
        if arguments.resume and not directory.started:
            raise UsageError(f"{directory.path} holds no run to resume; leave out --resume to start one")
        present = [stage for stage in STAGES[STAGES.index(stages[0]) :] if directory.checkpoint(stage).exists()]
        if present and not arguments.resume and not arguments.overwrite:
            raise UsageError(
                f"{directory.path} has stage {present[-1]} already: add --resume to go on or to see its report, "
                "--overwrite to start anew, or give another directory"
            )
        own = directory.started and not arguments.preset
        config = directory.read_config() if own else load_preset(preset)
        again = ["tinyprune", arguments.command, str(directory.path), "--resume"]
        if arguments.backend:
            again += ["--backend", arguments.backend]
        again += ["--tensorboard"] * arguments.tensorboard
        run = Run(directory, config, ops, shlex.join(again), events=arguments.tensorboard)
        if source is not None and not arguments.resume:
            run.adopt(Path(source))
        run.config = run.config.with_options(overrides(arguments))
        corpus = run.config.data.corpus
        if not own or corpus != config.data.corpus:  # what the run's file has stays as it is
            run.config = run.config.with_options({"data.corpus": absolute_corpus(corpus)})
        if run.config.texts:
            names = run.config.texts.split(",")
            texts = (name if name in ("run", *MADE) else absolute_corpus(name) for name in names)
            run.config = run.config.with_options({"texts": ",".join(texts)})
        run.prepare(stages, arguments.resume, arguments.overwrite)
        yield run


# Options of the command line that are settings of the same name, by the table they belong to.
SAME = {
    "data": ("corpus", "tokenizer"),
    "choose": ("by", "target_heads", "units"),
    "gate": ("lam",),
}


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line, by their names in the configuration."""
    named = {f"{table}.{name}": getattr(arguments, name, None) for table, names in SAME.items() for name in names}
    named |= {"seed": arguments.seed, "texts": getattr(arguments, "texts", None)}
    named["repair.tokens"] = getattr(arguments, "repair_tokens", None)
    given = {name: value for name, value in named.items() if value is not None}
    share = getattr(arguments, "target_parameters", None)
    # what is given replaces another target, or the target, that the run had
    if share is not None:
        given |= {"choose.target_share": share, "choose.price": "parameters", "choose.target_heads": None}
    elif "gate.lam" in given:
        given |= {"choose.target_heads": None, "choose.target_share": None}
    elif "choose.target_heads" in given:
        given["choose.target_share"] = None
    return given | parse_options(arguments.options)
