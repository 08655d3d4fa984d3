"""Where tests find the functions that a student wrote."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from tinyprune.course.sandbox import AnswerError, Sandbox

# what is being marked: a sandbox, a module, or (None) whatever program is running, such as a student's notebook
_submission: ContextVar[Sandbox | ModuleType | None] = ContextVar("submission", default=None)


class NoAnswer(AssertionError):
    """There is no such function, or it is not the student's own."""


def checked(name: str, function: Callable[..., Any], in_place: bool = False) -> Callable[..., Any]:
    """`function`, whose errors say what it was called with; of a forward also: that it returns out and a cache.

    Unless `in_place`, it gets copies of arrays. What a test expects is often computed from the inputs after the call:
    an answer that sets them all to 0 must not make its 0 right. What is returned has the other variant as `in_place`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs) if in_place else function(*copied(args), **copied(kwargs))
        except Exception as error:
            error.add_note(f"when called as {called(name, args, kwargs)}")
            raise
        if name.endswith("_forward") and not (isinstance(result, tuple) and len(result) == 2):
            came = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
            raise NoAnswer(f"{called(name, args, kwargs)} must return two things, out and a cache; it returned: {came}")
        return result

    call.__name__ = call.__qualname__ = name
    call.in_place = call if in_place else checked(name, function, in_place=True)
    return call


def copied(value: Any) -> Any:
    """`value` with copies of the arrays in it."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return {k: copied(v) for k, v in value.items()} if type(value) is dict else value


def called(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call in short: arrays as their shapes."""

    def short(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {value.shape}"
        text = getattr(value, "__name__", None) or repr(value)
        return text if len(text) <= 40 else f"{type(value).__name__} …"

    return f"{name}({', '.join([*map(short, args), *(f'{k}={short(v)}' for k, v in kwargs.items())])})"


@contextmanager
def submission(where: Sandbox | ModuleType | None) -> Iterator[None]:
    """Within this, `answer` looks there."""
    token = _submission.set(where)
    try:
        yield
    finally:
        _submission.reset(token)


def answer(name: str, *, keep: str | None = None) -> Callable[..., Any]:
    """The function `name` of the submission.

    It gets copies of the arrays that a test gives it. `answer(name).in_place` gets the arrays themselves: for answers
    that write their result into one, and for tests that look whether inputs are modified.

    Args:
        name: a function that the task asks for.
        keep: what of its result stays in the answer's process, where there is one: "all", "none", or "cache", the
            second of (out, cache). By default "cache" for names that end in _forward, so that a cache may be anything.

    Raises:
        NoAnswer: if there is none, or if it was imported from this package.
    """
    where = _submission.get()
    if isinstance(where, Sandbox):
        try:
            found = where.has(name)
        except AnswerError as error:
            raise NoAnswer(f"{name} could not be looked for: {error}") from None
        if not found:
            raise NoAnswer(f"there is no function {name}: keep its name as it was")
        keep = keep or ("cache" if name.endswith("_forward") else "none")
        return checked(name, where.function(name, keep))
    module = where or sys.modules["__main__"]
    function = getattr(module, name, None)
    if not callable(function):
        advice = "keep its name as it was" if where else "run the cell that defines it"
        raise NoAnswer(f"there is no function {name}: {advice}")
    origin = str(getattr(function, "__module__", ""))
    if origin.partition(".")[0] == "tinyprune":
        raise NoAnswer(
            f"{name} is that of {origin}: write your own (an import of it is refused where answers are marked)"
        )
    return checked(name, function)


def prepare(
    *, preload: Sequence[str] = ("numpy",), environment: Mapping[str, str] | None = None, **limits: float
) -> None:
    """Say, before anything else runs, what the answer's process needs. In a notebook: what this one needs.

    Args:
        preload: modules that answers use and that have to be imported before files are locked away.
        environment: variables that have to be set before they are imported.
        limits: fields of `Limits` that differ from its defaults.
    """
    where = _submission.get()
    if isinstance(where, Sandbox):
        where.preload = tuple(preload)
        where.environment = dict(environment or {})
        where.limits = replace(where.limits, **limits)
        where.seconds_left = where.limits.seconds_in_all
    else:
        os.environ.update(environment or {})


def hold(value: Any) -> Any:
    """`value`, sent to the answer's process once for many calls; in a notebook `value` itself."""
    where = _submission.get()
    return where.hold(value) if isinstance(where, Sandbox) else value


def fetch(value: Any) -> Any:
    """What stayed in the answer's process, brought here; in a notebook `value` itself."""
    where = _submission.get()
    return where.fetch(value) if isinstance(where, Sandbox) else value
