"""The commands that compare many models, and that measure speed and memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyprune.cli.options import parse_options
from tinyprune.errors import UsageError
from tinyprune.io.tables import print_records


def experiment(arguments: argparse.Namespace) -> None:
    """Run `tinyprune experiment`: print the summary, or with --json every row."""
    from tinyprune.experiments.grid import dask_cluster, local_processes
    from tinyprune.experiments.results import summarise
    from tinyprune.experiments.tradeoff import make_tradeoff, run_tradeoff
    from tinyprune.kernels.backend import default_backend

    if arguments.scheduler and arguments.jobs:
        raise UsageError("--jobs is for this machine's processes; a Dask cluster has as many as its workers")
    options = parse_options(arguments.options)
    if arguments.corpus:
        options = {"data.corpus": arguments.corpus} | options
    backend, cluster = arguments.backend or default_backend(), arguments.scheduler
    workers = dask_cluster(cluster) if cluster else local_processes(arguments.jobs, backend)
    sizes = {"backend": backend} | {name: getattr(arguments, name) for name in ("seeds", "scope")}
    sizes |= {"shares": listed(arguments, "shares", float), "methods": listed(arguments, "methods")}
    study = make_tradeoff(arguments.preset, options, arguments.quick, **sizes)
    names = [arguments.study, Path(arguments.preset or "").stem, Path(study.config.data.corpus).stem]
    if arguments.quick:
        names.append("quick")
    directory = arguments.directory or Path("runs", "-".join(filter(None, names)))
    rows = run_tradeoff(study, directory, workers, not cluster)
    print_records(rows if arguments.json else summarise(rows), arguments.json)


def compare(arguments: argparse.Namespace) -> None:
    """Run `tinyprune compare`: print the summary, or with --json every row."""
    from tinyprune.experiments.compare import open_comparison, run_comparison, summarise
    from tinyprune.kernels.backend import default_backend, get_backend

    sizes = {name: getattr(arguments, name) for name in ("seeds", "tokens", "corpus", "other", "task")}
    sizes |= {"shares": listed(arguments, "shares", float), "prompt": arguments.prompt if arguments.words else None}
    sizes |= {name: listed(arguments, name) for name in ("methods", "parts")}
    ops = get_backend(arguments.backend or default_backend())
    options = parse_options(arguments.options)
    comparison = open_comparison(arguments.run_directory, ops, options, **sizes)
    directory = arguments.directory or Path("runs", f"compare-{Path(arguments.run_directory).name}")
    rows = run_comparison(comparison, directory)
    print_records(rows if arguments.json else summarise(rows), arguments.json)


def atlas(arguments: argparse.Namespace) -> None:
    """Run `tinyprune atlas`: print what each part alone changes, or with --json every row."""
    from tinyprune.experiments.atlas import open_atlas, run_atlas
    from tinyprune.kernels.backend import default_backend, get_backend

    ops = get_backend(arguments.backend or default_backend())
    opened = open_atlas(arguments.run_directory, ops, arguments.task)
    directory = arguments.directory or Path("runs", f"atlas-{Path(arguments.run_directory).name}")
    rows = run_atlas(opened, directory, arguments.pruned)
    print_records(rows if arguments.json else [row for row in rows if row["level"] == "all"], arguments.json)


def listed(arguments: argparse.Namespace, name: str, kind: Callable[[str], Any] = str.strip) -> list[Any] | None:
    """Return the values of an option that takes several with commas between them; None if it is not given."""
    given = getattr(arguments, name)
    try:
        return None if given is None else [kind(value) for value in given.split(",") if value]
    except ValueError as error:
        said = f"--{name.replace('_', '-')} takes numbers with commas between them, got {given!r}"
        raise UsageError(said) from error


def bench(arguments: argparse.Namespace) -> None:
    """Run `tinyprune bench`."""
    from tinyprune.bench.command import Options, print_benchmark

    given = {name: getattr(arguments, name) for name in ("backend", "rounds", "threads", "gpu")}
    given |= {name: listed(arguments, name) for name in ("peers", "shapes")}
    if arguments.preset:
        given["shapes"] = [arguments.preset]
    options = Options(**{name: value for name, value in given.items() if value is not None})
    print_benchmark(arguments.benchmark, options, arguments.json)
