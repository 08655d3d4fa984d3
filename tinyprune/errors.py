"""Errors that the command line reports in one line, each with an exit status.

Every message names the cause and what to do about it. Library users may catch `TinypruneError`.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P, Result = ParamSpec("P"), TypeVar("Result")


class TinypruneError(Exception):
    """A valid request failed: a broken checkpoint, a full disk, a loss that is not a number."""

    exit_status = 1


class UsageError(TinypruneError, ValueError):
    """The request is not valid: an unknown key, a value out of range, an empty text."""

    exit_status = 2


class MissingExtraError(UsageError, ImportError):
    """A package is missing that only a part of tinyprune needs; `install_command` says how to install it."""


class CheckpointError(TinypruneError):
    """A checkpoint cannot be read: it is truncated, altered, or not one of ours."""


class SaveError(TinypruneError):
    """A file could not be written, for example because the disk is full. Its previous content is untouched."""


class NotFiniteError(TinypruneError):
    """The loss or a gradient became NaN or infinite."""


class Interrupted(TinypruneError):
    """The program was stopped by Ctrl-C or SIGTERM, after everything was saved."""

    exit_status = 130


def nearest(given: str, allowed: Iterable[str], suggestions: Mapping[str, str] | None = None) -> str:
    """Return the end of a message about an unknown name: whether the most similar of `allowed` was meant, or nothing.

    `suggestions` says what to write instead of some names.
    """
    from difflib import get_close_matches  # seldom needed, and slow to import

    for found in get_close_matches(given, [*allowed, *(suggestions or {})], 1):
        return f"; did you mean {(suggestions or {}).get(found, found)}?"
    return ""


def install_command(extra: str) -> str:
    """Return the command that installs the optional packages `extra`, and the same in a checkout."""
    return f'python -m pip install "tinyprune[{extra}]" (in a checkout: -e ".[{extra}]")'


def missing_extra(what: str, extra: str, module: str) -> BaseException:
    """Return what to raise where `what`, the module `module`, is loaded without the packages of `extra`.

    It is one line. Run as a program (`python -m`), the module ends with it; an import raises it, to be caught.
    """
    said = f"{what} needs packages that are not installed: {install_command(extra)}"
    return SystemExit(f"tinyprune: error: {said}") if module == "__main__" else MissingExtraError(said)


def brief(value: Any) -> str:
    """Return the beginning and the end of what a value looks like, in one line."""
    return " ".join(reprlib.repr(value).split())


# How one comes by what a function is to be given.
MADE_BY = {
    "Text": "as from load_text",
    "Transformer": "as from new_model or load",
    "ByteTokenizer": 'as a checkpoint has one; for a new one load_text(DataConfig(corpus=…, tokenizer="byte"))',
}


def typed(function: Callable[P, Result]) -> Callable[P, Result]:
    """Let a public function refuse arguments that are not of the types that it is annotated with, by UsageError."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Result:
        hints = typing.get_type_hints(function)
        for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            hint = hints[name]
            union = isinstance(hint, types.UnionType)
            kinds = [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else [hint])]
            allowed = [{int: numbers.Integral, float: numbers.Real}.get(kind, kind) for kind in kinds]
            if Any not in kinds and not isinstance(value, tuple(allowed)):
                names = [kind.__name__.replace("NoneType", "None") for kind in kinds]
                how = "".join(f", {MADE_BY[kind]}" for kind in names if kind in MADE_BY)
                raise UsageError(f"{name} must be of type {' or '.join(names)}{how}; got {brief(value)}")
        return function(*args, **kwargs)

    return checked
