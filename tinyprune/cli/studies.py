"""The commands that compare many models, and that measure speed and memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyprune.cli.options import parse_options
from tinyprune.cli.output import print_records
from tinyprune.errors import UsageError


def experiment(arguments: argparse.Namespace) -> None:
    """Run `tinyprune experiment`: print the summary, or with --json every row."""
    from tinyprune.experiments.grid import dask_cluster, local_processes
    from tinyprune.experiments.results import summarise
    from tinyprune.experiments.running import make_plan, run_study
    from tinyprune.kernels.backend import default_backend

    if arguments.scheduler and arguments.jobs:
        raise UsageError("--jobs is for this machine's processes; a Dask cluster has as many as its workers")
    options = parse_options(arguments.options)
    if arguments.corpus:
        options = {"data.corpus": arguments.corpus} | options
    backend, cluster = arguments.backend or default_backend(), arguments.scheduler
    workers = dask_cluster(cluster) if cluster else local_processes(arguments.jobs, backend)
    sizes = {"backend": backend} | {name: getattr(arguments, name) for name in ("seeds", "scope")}
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
