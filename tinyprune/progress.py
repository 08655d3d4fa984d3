"""What the user sees of long work: lines on standard error, and whether a progress bar is of use there."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Tell the user, on standard error, what is happening."""
    print(f"tinyprune: {message}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Write a time for people: "12 s", "3.4 min", "1.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def silent() -> bool:
    """For tqdm's `disable`: True unless standard error is a terminal or a notebook's cell."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return not (in_notebook or sys.stderr.isatty())
