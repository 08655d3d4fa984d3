"""Tables of flat records, for people (aligned text, Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from typing import Any

Record = dict[str, Any]


def show(value: Any) -> str:
    """A cell: thousands separated, floats with four digits that mean something, yes and no, a dash for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:.1e}"
            if value and abs(value) < 1e-3
            else f"{value:.4g}"
            if abs(value) < 9999.5
            else f"{value:,.0f}"
        )
    return str(value)


def text_table(records: list[Record]) -> str:
    """Aligned columns, numbers to the right. The first record's keys are the columns."""
    columns = list(records[0])
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[show(record[column]) for column in columns] for record in records]
    widths = [max(len(row[j]) for row in cells) for j in range(len(columns))]
    numeric = [
        all(isinstance(r[c], int | float | None) and not isinstance(r[c], bool) for r in records) for c in columns
    ]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def markdown_table(records: list[Record]) -> str:
    """The same as Markdown."""
    columns = list(records[0])
    rows = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    rows += [[show(record[column]) for column in columns] for record in records]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def json_table(records: list[Record]) -> str:
    """One list of flat objects. An infinite number, which JSON does not have, is null."""
    plain = [{k: None if v in (math.inf, -math.inf) else v for k, v in record.items()} for record in records]
    return json.dumps(plain, indent=1, allow_nan=False)
