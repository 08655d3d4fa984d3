"""Tables of flat records, for people (aligned text, Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from typing import Any

Record = dict[str, Any]


def show(value: Any) -> str:
    """Return a cell's text: thousands separated, four significant digits, yes and no, a dash for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and abs(value) < 1e-3:
            return f"{value:.1e}"
        return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"
    return str(value)


def text_table(records: list[Record]) -> str:
    """Return a table with aligned columns, numbers to the right. The first record's keys are the columns."""
    columns = []
    for name, cells in zip(records[0], zip(*_cells(records), strict=True), strict=True):
        width = max(map(len, cells))
        pad = str.rjust if all(_is_number(record[name]) for record in records) else str.ljust
        head, *values = (pad(cell, width) for cell in cells)
        columns.append([head, "─" * width, *values])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _is_number(value: Any) -> bool:
    """Return whether a cell stands at the right of its column, as a number or where one is missing."""
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def markdown_table(records: list[Record]) -> str:
    """Return the same table as Markdown."""
    head, *rows = _cells(records)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _cells(records: list[Record]) -> list[list[str]]:
    """Return the rows of a table as text, the names of the columns first."""
    columns = list(records[0])
    names = [column.replace("_", " ") for column in columns]
    return [names, *([show(record[column]) for column in columns] for record in records)]


def json_table(records: list[Record]) -> str:
    """Return a list of flat objects as JSON, with null for infinite numbers, which JSON lacks."""
    infinite = (math.inf, -math.inf)
    plain = [{k: None if v in infinite else v for k, v in record.items()} for record in records]
    return json.dumps(plain, indent=1, allow_nan=False)


def print_records(records: list[Record], as_json: bool) -> None:
    """Print a table as text or as JSON."""
    print(json_table(records) if as_json else text_table(records))
