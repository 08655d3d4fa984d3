"""What the user sees of long work: lines on standard error, and progress bars where they can be seen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def say(message: str) -> None:
    """Tell the user, on standard error and above any progress bar, what is happening."""
    from tqdm import tqdm  # slow to import

    tqdm.write(f"tinyprune: {message}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Write a time for people: "12 s", "3.4 min", "1.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def expected(seconds: float) -> str:
    """Write about how long something takes that was just tried, and where other programs compute as well, say so."""
    load, processors = 0.0, os.cpu_count() or 1
    with suppress(AttributeError, OSError):  # Windows
        load = os.getloadavg()[0]
    busy = load > processors + 0.5  # this program's own threads are at most as many
    others = f" while the machine is as busy as now ({load:.1f} programs on {processors} processors)"
    return f"about {duration(seconds)}{others if busy else ''}"


def in_notebook() -> bool:
    """Return whether standard error is a notebook's cell."""
    return type(sys.stderr).__module__.startswith("ipykernel")


def silent() -> bool:
    """Return whether a progress bar would not be seen: standard error is neither a terminal nor a notebook's cell."""
    return not (in_notebook() or sys.stderr.isatty())


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a bar of tqdm, with its options, on standard error; it is not drawn where it would not be seen."""
    from tqdm import tqdm  # slow to import

    return tqdm(iterable, disable=silent(), **options)
