"""Tables of finished cells: a row for each model and split, means over seeds, and differences between methods."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyprune.config import ModelConfig
from tinyprune.errors import CheckpointError
from tinyprune.experiments.plan import Entry
from tinyprune.experiments.store import Store
from tinyprune.experiments.timing import measure_times, with_head_counts
from tinyprune.tables import Record

SPLITS = ("valid", "test")


def model_config(entry: Entry, record: dict[str, Any], V: int) -> ModelConfig:
    """Return the sizes of a cell's pruned model."""
    return with_head_counts(dataclasses.replace(entry.cell.config.model, V=V), record["heads"])


def tidy(study: str, entries: Sequence[Entry], store: Store, V: int, backend: str) -> list[Record]:
    """Return a row for each model and split; times are measured now.

    `heads_shifted` is how many heads more than the target the controller left open (fewer if negative), which were then
    closed to meet it exactly; None for methods that have no controller. Raises CheckpointError if a cell is not done.
    """
    done = [(entry, store.record(entry.cell)) for entry in entries]
    for entry, record in done:
        if record is None:
            raise CheckpointError(f"{store.directory} lacks the cell {entry.cell}; run the study again to compute it")
    configs = [model_config(entry, record, V) for entry, record in done]
    ms = measure_times(configs, backend)
    return [
        {
            "study": study,
            "corpus": Path(entry.cell.config.data.corpus).name,
            "kind": entry.cell.config.model.kind,
            "method": entry.method,
            "seed": entry.seed,
            "heads_open": sum(record["heads"]),
            "heads_total": record["heads_total"],
            "parameters": record["parameters"],
            "multiply_adds_per_token": record["multiply_adds_per_token"],
            "bits_per_character": record["bits_per_character"][split],
            "ms_per_1k_tokens": ms[config],
            "steps_total": record["steps_total"],
            "split": split,
            "scope": entry.cell.scope,
            "heads_by_layer": " ".join(map(str, record["heads"])),
            "heads_shifted": record.get("heads_shifted"),
        }
        for (entry, record), config in zip(done, configs, strict=True)
        for split in SPLITS
    ]


def summarise(rows: Sequence[Record], split: str = "test") -> list[Record]:
    """Return mean and standard deviation (spread) over seeds, for each method and number of heads, on one split."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for row in rows:
        if row["split"] == split:
            groups.setdefault((row["method"], row["heads_open"]), []).append(row)
    return [
        {
            "method": method,
            "heads_open": heads,
            "heads_total": group[0]["heads_total"],
            "parameters": group[0]["parameters"],
            "multiply_adds_per_token": group[0]["multiply_adds_per_token"],
            "ms_per_1k_tokens": statistics.fmean(row["ms_per_1k_tokens"] for row in group),
            "bits_per_character": statistics.fmean(row["bits_per_character"] for row in group),
            "spread": spread([row["bits_per_character"] for row in group]),
            "seeds": len(group),
        }
        for (method, heads), group in groups.items()
    ]


def compare(rows: Sequence[Record], reference: str, split: str = "test") -> list[Record]:
    """Compute how many more bits each method needs than the reference, with as many heads and the same seed.

    Rows without a partner of the reference are left out.

    Returns:
        A record for each other method and number of heads: mean of the differences and their standard deviation
        (spread) over seeds. Above 0 the reference is better.
    """
    bits = {(r["heads_open"], r["seed"]): r["bits_per_character"] for r in rows_of(rows, reference, split)}
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        pair = (row["heads_open"], row["seed"])
        if row["split"] == split and row["method"] != reference and pair in bits:
            group = groups.setdefault((row["method"], row["heads_open"]), [])
            group.append(row["bits_per_character"] - bits[pair])
    return [
        {"method": method, "reference": reference, "heads_open": heads} | difference(values)
        for (method, heads), values in groups.items()
    ]


def compare_sizes(rows: Sequence[Record], method: str, reference: str, split: str = "test") -> list[Record]:
    """Compute how many more bits a method needs than the reference, with as many parameters and the same seed.

    The method's bits are interpolated linearly between its sizes; sizes outside of their range are left out.

    Returns:
        A record for each number of heads of the reference, as in `compare`.
    """
    groups: dict[int, list[float]] = {}
    for row in rows_of(rows, reference, split):
        own = sorted(
            (r["parameters"], r["bits_per_character"]) for r in rows_of(rows, method, split) if r["seed"] == row["seed"]
        )
        sizes, bits = zip(*own, strict=True)
        if sizes[0] <= row["parameters"] <= sizes[-1]:
            at_size = float(np.interp(row["parameters"], sizes, bits))
            groups.setdefault(row["heads_open"], []).append(at_size - row["bits_per_character"])
    sizes_of = {r["heads_open"]: r["parameters"] for r in rows_of(rows, reference, split)}
    return [
        {"method": method, "reference": reference, "heads_open": heads, "parameters": sizes_of[heads]}
        | difference(values)
        for heads, values in groups.items()
    ]


def difference(values: Sequence[float]) -> Record:
    """Return mean and spread of differences over seeds."""
    return {"difference": statistics.fmean(values), "spread": spread(values), "seeds": len(values)}


def rows_of(rows: Sequence[Record], method: str, split: str) -> list[Record]:
    """Return the rows of one method and split."""
    return [row for row in rows if row["method"] == method and row["split"] == split]


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds (n − 1); None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


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
