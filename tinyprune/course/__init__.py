"""What assignments are made of: answers, what is expected of them, and a safe place to run them in.

    from tinyprune.course import answer, expect, expect_close, expect_gradients

A test asks for a function by name, `answer("linear_forward")`. In a student's notebook that is the function of the
notebook itself; where answers are marked it is a stand-in for a function in a locked process (`sandbox`). So the same
test runs at home and for marks, and the checker is never within reach of what it checks.

nbgrader (with the steps in `marking`) and pytest (`pytest_plugin`, with Gradescope's results) both run the same tests.
"""

from __future__ import annotations

import importlib
from typing import Any

# loaded when they are first used: the process of an answer has this package, and none of these
_PUBLIC = {
    "answer": "tinyprune.course.answers",
    "fetch": "tinyprune.course.answers",
    "hold": "tinyprune.course.answers",
    "prepare": "tinyprune.course.answers",
    "submission": "tinyprune.course.answers",
    "expect": "tinyprune.course.expectations",
    "expect_close": "tinyprune.course.expectations",
    "expect_error": "tinyprune.course.expectations",
    "expect_gradients": "tinyprune.course.expectations",
    "expect_unmodified": "tinyprune.course.expectations",
    "AnswerError": "tinyprune.course.sandbox",
    "Limits": "tinyprune.course.sandbox",
    "Sandbox": "tinyprune.course.sandbox",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tinyprune.course' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
