"""Whether a progress bar is of use where standard error goes."""

from __future__ import annotations

import sys


def silent() -> bool:
    """For tqdm's `disable`: True unless standard error is a terminal or a notebook's cell."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return not (in_notebook or sys.stderr.isatty())
