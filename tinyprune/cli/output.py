"""What commands print: tables on standard output, and how they failed, in one line on standard error."""

from __future__ import annotations

import os
import sys
from typing import Any


def print_records(records: list[dict[str, Any]], as_json: bool) -> None:
    """Print the table as text or as JSON."""
    from tinyprune.tables import json_table, text_table

    print(json_table(records) if as_json else text_table(records))


def complain(message: object, status: int) -> int:
    """Print one line on standard error, as an error unless the user stopped it (status 130); return `status`."""
    kind = "" if status == 130 else "error: "
    print(f"tinyprune: {kind}{' '.join(str(message).split())}", file=sys.stderr)
    return status


def give_up_output() -> None:
    """Discard what is left for a closed standard output, or Python would report it once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
