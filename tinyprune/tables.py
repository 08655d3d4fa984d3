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
    cells = _cells(records)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [
        all(isinstance(r[c], int | float | None) and not isinstance(r[c], bool) for r in records) for c in records[0]
    ]
    pads = [str.rjust if right else str.ljust for right in numeric]
    lines = ["  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(records: list[Record]) -> str:
    """Return the same table as Markdown."""
    head, *rows = _cells(records)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _cells(records: list[Record]) -> list[list[str]]:
    """Return the rows of a table as text, the names of the columns first."""
    columns = list(records[0])
    return [[column.replace("_", " ") for column in columns], *([show(r[c]) for c in columns] for r in records)]


def json_table(records: list[Record]) -> str:
    """Return a list of flat objects as JSON, with null for infinite numbers, which JSON lacks."""
    plain = [{k: None if v in (math.inf, -math.inf) else v for k, v in record.items()} for record in records]
    return json.dumps(plain, indent=1, allow_nan=False)


def print_records(records: list[Record], as_json: bool) -> None:
    """Print a table as text or as JSON."""
    print(json_table(records) if as_json else text_table(records))
