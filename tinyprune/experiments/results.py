"""From finished cells to tables: a tidy one with a row for each model and split, and a summary over seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from tinyprune.config import ModelConfig
from tinyprune.errors import CheckpointError
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import Entry
from tinyprune.experiments.timing import measure_times, with_head_counts
from tinyprune.tables import Record

SPLITS = ("valid", "test")


def model_config(entry: Entry, record: dict[str, Any], V: int) -> ModelConfig:
    """The sizes of the model that a cell ended with."""
    return with_head_counts(dataclasses.replace(entry.cell.config.model, V=V), record["heads"])


def tidy(study: str, entries: Sequence[Entry], store: Store, V: int, backend: str) -> list[Record]:
    """A row for each model and split, times measured now, one after the other.

    Raises:
        CheckpointError: if a cell is not done.
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
            "corpus": entry.cell.config.data.corpus,
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
            "heads_by_layer": " ".join(map(str, record["heads"])),
        }
        for (entry, record), config in zip(done, configs, strict=True)
        for split in SPLITS
    ]


def summarise(rows: Sequence[Record], split: str = "test") -> list[Record]:
    """Mean and standard deviation over seeds for each method and number of heads, on one split.

    `against_random` is the mean difference from random pruning with the same seed, at as many heads: negative is
    better; None where random was not run.
    """
    groups: dict[tuple, list[Record]] = {}
    for row in rows:
        if row["split"] == split:
            groups.setdefault((row["method"], row["heads_open"]), []).append(row)
    random_bits = {(r["heads_open"], r["seed"]): r["bits_per_character"] for r in rows_of(rows, "random", split)}
    records = []
    for (method, heads), group in groups.items():
        bits = [row["bits_per_character"] for row in group]
        pairs = [(heads, row["seed"]) for row in group]
        paired = [b - random_bits[pair] for b, pair in zip(bits, pairs, strict=True) if pair in random_bits]
        records.append(
            {
                "method": method,
                "heads_open": heads,
                "heads_total": group[0]["heads_total"],
                "parameters": group[0]["parameters"],
                "bits_per_character": statistics.fmean(bits),
                "spread": spread(bits),
                "against_random": statistics.fmean(paired) if paired and method != "random" else None,
                "ms_per_1k_tokens": statistics.fmean(row["ms_per_1k_tokens"] for row in group),
                "seeds": len(group),
            }
        )
    return records


def rows_of(rows: Sequence[Record], method: str, split: str) -> list[Record]:
    """The rows of one method and split."""
    return [row for row in rows if row["method"] == method and row["split"] == split]


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n − 1); None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def to_csv(records: Sequence[Record]) -> str:
    """Records as CSV, numbers with as many digits as mean something."""

    def plain(value: Any) -> Any:
        return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else value

    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in record.items()} for record in records)
    return file.getvalue()


def read_csv(text: str) -> list[Record]:
    """What `to_csv` wrote, numbers as numbers."""

    def value(cell: str) -> Any:
        for kind in (int, float):
            try:
                return kind(cell)
            except ValueError:
                continue
        return cell or None

    return [{key: value(cell) for key, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]
