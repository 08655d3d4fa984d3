"""What a study leaves beside its cells: tables, differences between methods, and the files of its directory.

study.json                study, configuration, seeds, machine
results.csv               a row for each model and split
summary.csv               means over seeds, and their standard deviation (n − 1)
comparison.csv            differences from the methods that the study is about, see `intervals`
plots/*.png, README.md    the same as pictures and as text
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tinyprune.errors import TinypruneError
from tinyprune.experiments.cells import Cell
from tinyprune.experiments.store import Store
from tinyprune.io.files import replace_file
from tinyprune.io.progress import say
from tinyprune.io.tables import Record
from tinyprune.kernels.backend import BACKENDS
from tinyprune.kernels.machine import describe_machine, processors
from tinyprune.plots import save_figure, titled

SPLITS = ("valid", "test")
Picture = tuple[str, str, Figure]  # file name, caption, figure


def result_rows(study: str, cells: Sequence[Cell], store: Store) -> list[Record]:
    """Return a row for each model and split.

    `heads_shifted` is how many heads more than the target the controller left open (fewer if negative), which were then
    closed to meet it exactly; None for methods that have no controller.
    """
    done = [(cell, store.records[cell.key]) for cell in cells]
    check_baselines(done)
    return [
        {
            "study": study,
            "corpus": Path(cell.config.data.corpus).name,
            "kind": cell.config.model.kind,
            "method": cell.method,
            "start": cell.definition.start,
            "seed": cell.config.seed,
            # of heads and blocks that are removed apart, what was asked for
            "heads_open": record["heads_total"] if cell.heads is None else cell.heads,
            "heads_total": record["heads_total"],
            "parameters": record["parameters"],
            "multiply_adds_per_token": record["multiply_adds_per_token"],
            "bits_per_character": record["bits_per_character"][split],
            "steps_total": record["steps_total"],
            "split": split,
            "scope": cell.scope,
            "heads_by_layer": " ".join(map(str, record["heads"])),
            "heads_shifted": record.get("heads_shifted"),
        }
        for cell, record in done
        for split in SPLITS
    ]


def check_baselines(done: Iterable[tuple[Cell, dict[str, Any]]]) -> None:
    """Raise TinypruneError if models of one baseline began with different weights, as on two kinds of processors."""
    seen: dict[str, Any] = {}
    for cell, record in done:
        key, sha256 = getattr(cell.baseline, "key", ""), record.get("baseline_sha256")
        if seen.setdefault(key, sha256) != sha256:
            raise TinypruneError(
                f"models of seed {cell.config.seed} began with different weights, perhaps of "
                "different machines; delete that seed's lines in cells.jsonl, and they are computed again"
            )


def grouped(rows: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Return the rows by their values in the named columns, in the order in which these come first."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def mean_of(rows: Sequence[Record], name: str) -> float | None:
    """Return the mean of a column; None where a value is missing."""
    values = [row.get(name) for row in rows]
    return None if None in values else statistics.fmean(values)


def summarise(rows: Sequence[Record]) -> list[Record]:
    """Return means over seeds for each method and number of heads, and the spread of the mean of both splits."""
    names = ("method", "heads_open", "heads_total", "parameters", "multiply_adds_per_token")
    by_split = grouped(rows, "method", "heads_open", "split")
    bits = "bits_per_character"
    models = [own[0] | {bits: mean_of(own, bits)} for own in grouped(rows, "method", "heads_open", "seed").values()]
    return [
        {name: group[0][name] for name in names}
        | {split: mean_of(by_split[*key, split], bits) for split in SPLITS}
        | {"spread": statistics.stdev(row[bits] for row in group) if len(group) > 1 else None, "seeds": len(group)}
        for key, group in grouped(models, "method", "heads_open").items()
    ]


def to_csv(records: Sequence[Record]) -> str:
    """Return records as CSV, numbers with six significant digits."""

    def plain(value: Any) -> Any:
        return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else value

    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in record.items()} for record in records)
    return file.getvalue()


def read_csv(text: str) -> list[Record]:
    """Return the records that `to_csv` wrote, with numbers as int or float and empty cells as None."""

    def value(cell: str) -> Any:
        for kind in (int, float):
            try:
                return kind(cell)
            except ValueError:
                continue
        return cell or None

    return [{key: value(cell) for key, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]


def machine_of(backend: str) -> str:
    """Describe the machine and the threads with which a backend computes."""
    chosen, threads = BACKENDS[backend], processors()
    if backend == "numba":
        import numba

        threads = numba.get_num_threads()
    return describe_machine(threads, chosen.packages, chosen.on_device)


def write_files(
    directory: Path,
    about: dict[str, Any],
    tables: dict[str, list[Record]],
    pictures: Iterable[Picture],
    paragraphs: Sequence[str],
) -> None:
    """Write study.json (`about`), a .csv of each table with rows, the pictures, and README.md: paragraphs, pictures."""
    for name, records in tables.items():
        if records:
            replace_file(directory / f"{name}.csv", to_csv(records).encode())
    replace_file(directory / "study.json", (json.dumps(about, indent=1) + "\n").encode())
    plots, shown = directory / "plots", []
    for name, caption, figure in pictures:
        save_figure(titled(figure, paragraphs[0].removeprefix("# ")), plots / f"{name}.png")
        shown.append(f"![{caption}](plots/{name}.png)")
    heading = html.escape(paragraphs[0], quote=False)
    page = "\n\n".join([heading, *paragraphs[1:], *shown, f"Machine: {about['machine']}."]) + "\n"
    replace_file(directory / "README.md", page.encode())
    say(f"{about['study']}: {directory / 'README.md'}, *.csv and plots/ are written")
