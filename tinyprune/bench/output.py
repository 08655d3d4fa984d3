"""A benchmark's records as a table for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tinyprune.tables import Record, text_table

# Said once above the table, or there for plots only.
NO_COLUMNS = ("benchmark", "machine", "sweep", "value")


def text_output(records: Sequence[Record]) -> str:
    """What was measured on what machine, then a row for each contender."""
    rows = [{key: value for key, value in record.items() if key not in NO_COLUMNS} for record in records]
    head = textwrap.fill(f"{records[0]['benchmark']} on {records[0]['machine']}", 120, break_on_hyphens=False)
    return f"{head}\n\n{text_table(rows)}"
