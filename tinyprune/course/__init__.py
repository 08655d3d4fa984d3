"""Building blocks of assignments: answers, what is expected of them, and a safe process to run them in.

    from tinyprune.course import answer, expect, expect_close, expect_gradients

A test asks for a function by name, `answer("linear_forward")`. In a student's notebook that is the notebook's own
function; where answers are marked it is a proxy for a function in a separate process (`sandbox`). So the same test
runs at home and for marks, and an answer cannot reach the checker.

nbgrader (with the steps in `marking`) and pytest (`pytest_plugin`, also for Gradescope) run the same tests.
"""

from __future__ import annotations

import importlib
from typing import Any

# Loaded at first use: the process of an answer imports this package, and must not import these.
_MODULES = {
    "answers": ("answer", "fetch", "hold", "prepare", "submission"),
    "expectations": ("expect", "expect_close", "expect_gradients", "expect_unmodified"),
    "sandbox": ("AnswerError", "Limits", "Sandbox"),
}
_PUBLIC = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tinyprune.course' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
