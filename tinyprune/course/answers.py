"""How tests find the functions that a student wrote."""

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

# What is being marked: a sandbox, a module, or (None) the running program, such as a student's notebook.
_submission: ContextVar[Sandbox | ModuleType | None] = ContextVar("submission", default=None)


class NoAnswer(AssertionError):
    """There is no such function, or it is not the student's own work."""


def checked(name: str, function: Callable[..., Any], in_place: bool = False) -> Callable[..., Any]:
    """Wrap `function`: its errors say what it was called with, and a forward must return (out, cache).

    Unless `in_place`, it gets copies of arrays: tests often compute what they expect from the inputs after the call, so
    an answer that sets its inputs to 0 must not thereby be right. The result's attribute `in_place` gets no copies.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if not in_place:
            args, kwargs = copied(args), copied(kwargs)
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            error.add_note(f"when called as {called(name, args, kwargs)}")
            raise
        if name.endswith("_forward") and not (isinstance(result, tuple) and len(result) == 2):
            came = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
            said = f"{called(name, args, kwargs)} must return two things, out and a cache"
            raise NoAnswer(f"{said}; it returned: {came}")
        return result

    call.__name__ = call.__qualname__ = name
    call.in_place = call if in_place else checked(name, function, in_place=True)
    return call


def copied(value: Any) -> Any:
    """Return `value` with copies of the arrays in it."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return {k: copied(v) for k, v in value.items()} if type(value) is dict else value


def called(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Describe a call briefly, with the shapes of arrays."""

    def short(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {value.shape}"
        text = getattr(value, "__name__", None) or repr(value)
        return text if len(text) <= 40 else f"{type(value).__name__} …"

    named = (f"{k}={short(v)}" for k, v in kwargs.items())
    return f"{name}({', '.join([*map(short, args), *named])})"


@contextmanager
def submission(where: Sandbox | ModuleType | None) -> Iterator[None]:
    """Let `answer` look in `where` within this context."""
    token = _submission.set(where)
    try:
        yield
    finally:
        _submission.reset(token)


def answer(name: str, *, keep: str | None = None) -> Callable[..., Any]:
    """Return the function `name` of the submission, which gets copies of the arrays that it is called with.

    `answer(name).in_place` gets the arrays themselves: for answers that write their result into one, and for tests of
    whether inputs are modified.

    `keep` is the part of its result that stays in the answer's process, if there is one: "all", "none", or "cache", the
    second of (out, cache). By default "cache" for names that end in _forward, so that a cache may be anything.
    Raises NoAnswer if there is no such function, or if it was imported from this package.
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
    """Configure the answer's process before it starts. In a notebook only set the environment.

    `preload` are modules that have to be imported beforehand, `environment` variables to set before that,
    `limits` the fields of `Limits` that differ from the defaults.
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
    """Send `value` to the answer's process once, for many calls. In a notebook return `value` itself."""
    where = _submission.get()
    return where.hold(value) if isinstance(where, Sandbox) else value


def fetch(value: Any) -> Any:
    """Fetch a value that stayed in the answer's process. In a notebook return `value` itself."""
    where = _submission.get()
    return where.fetch(value) if isinstance(where, Sandbox) else value
