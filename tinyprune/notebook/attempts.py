"""How long an exercise takes and how many attempts: a log on the reader's own disk, for readers who ask for it.

    from tinyprune.notebook import attempts; attempts.keep()         from now on, in runs/attempts.jsonl
    attempts.stop()                                                  no longer; the file stays until you delete it

    python -m tinyprune.notebook.attempts FILE …                     a table over the logs of one or more readers

A line has the exercise, the time and whether it passed: no name, no code, and nothing leaves the disk. An attempt lasts
from the line before it, in any exercise; what is longer than `BREAK` was a break, and counts as nothing.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.io.tables import Record, text_table
from tinyprune.notebook import REPOSITORY

FILE = REPOSITORY / "runs" / "attempts.jsonl"
BREAK = 30 * 60  # seconds
KEYS = {"exercise", "at", "passed"}


def keep() -> None:
    """Keep a log from now on; before it nothing is written."""
    write("begin", True)
    print(f"Attempts are kept in {FILE}, on this disk alone.")


def stop() -> None:
    """Keep no log any longer."""
    if FILE.exists():
        write("end", True)


def write(exercise: str, passed: bool) -> None:
    """Add a line to the log."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"exercise": exercise, "at": round(time.time()), "passed": passed}) + "\n")


def noted(check: Callable[..., None]) -> Callable[..., None]:
    """Let a check of a function of the reader's write to the log, if there is one; a stub is no attempt."""

    @functools.wraps(check)
    def function(yours: Callable[..., Any], ours: Callable[..., Any], *cases: Any, **options: Any) -> None:
        kept, passed = FILE.exists() and read(FILE)[-1]["exercise"] != "end", False
        try:
            check(yours, ours, *cases, **options)
            passed = True
        except NotImplementedError:
            kept = False
            raise
        finally:
            if kept:
                write(ours.__name__, passed)

    return function


def read(path: Path) -> list[Record]:
    """Return the lines of a log. Raises UsageError if it cannot be read."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no log of attempts: {error}") from error
    if not lines or any(not isinstance(line, dict) or line.keys() != KEYS for line in lines):
        raise UsageError(f"{path} is no log of attempts: each line must have {', '.join(sorted(KEYS))}")
    return lines


def per_exercise(lines: Iterable[Record]) -> dict[str, Record]:
    """Return for each exercise of a reader its attempts and minutes until it passed for the first time, and whether."""
    found: dict[str, Record] = {}
    before = None
    for line in lines:
        name, seconds = line["exercise"], line["at"] - (line["at"] if before is None else before)
        before = line["at"]
        own = found.setdefault(name, {"attempts": 0, "minutes": 0.0, "passed": False})
        if not own["passed"]:
            own["attempts"] += 1
            own["minutes"] += seconds / 60 if seconds <= BREAK else 0
            own["passed"] = line["passed"]
    return {name: own for name, own in found.items() if name not in ("begin", "end")}


def summary(logs: Iterable[list[Record]]) -> list[Record]:
    """Return a row for each exercise: readers who tried, how many passed, and medians of attempts and minutes."""
    readers = [per_exercise(lines) for lines in logs]
    rows = []
    for name in dict.fromkeys(name for reader in readers for name in reader):
        own = [reader[name] for reader in readers if name in reader]
        middle = {key: statistics.median(x[key] for x in own) for key in ("attempts", "minutes")}
        rows.append({"exercise": name, "readers": len(own), "passed": sum(x["passed"] for x in own)} | middle)
    return rows


def main(paths: list[str]) -> int:
    """Print the table of logs; without any, that of one's own."""
    try:
        rows = summary([read(Path(path)) for path in paths or [str(FILE)]])
        print(text_table(rows) if rows else "no attempt yet")
    except TinypruneError as error:
        print(f"tinyprune: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
