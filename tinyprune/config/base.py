"""The base of all tables of a run's file, and how their options are defined."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from tinyprune.config.version_02 import without_retired
from tinyprune.errors import UsageError, nearest

# The limit of every size: far above what fits into memory, far below NumPy's largest integer.
LARGEST = 10_000_000


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    later: bool = False,
) -> Any:
    """Define a field: its meaning, and its allowed values, low <= value <= high or one of `choices`.

    An option that is `later` is newer than the first checkpoints. Files leave it out where it has its
    default, as old ones do.
    """
    about = {"doc": doc, "low": low, "high": high, "choices": choices, "later": later}
    return field(default=default, metadata=about)


newer = functools.partial(option, later=True)
# Numbers that are not negative, and sizes, which are not unlimited either.
number = functools.partial(option, low=0)
newer_number = functools.partial(option, low=0, later=True)
size = functools.partial(option, low=1, high=LARGEST)


def checked_type(key: str, value: Any, hint: Any) -> Any:
    """Return a value, converted where TOML is looser than Python: 3 for 3.0, a list for a tuple.

    Raises UsageError if it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return checked_type(key, value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key} must be a list, got {value!r}")
        return tuple(checked_type(f"{key}[{i}]", x, arguments[0]) for i, x in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    if type(value) is not hint:
        raise UsageError(f"{key} must be of type {hint.__name__}, got {value!r}")
    return value


def check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    """Raise UsageError unless a number is finite and low <= value <= high."""
    if not math.isfinite(value):
        raise UsageError(f"{key} must be a finite number, got {value}")
    if low is not None and value < low:
        raise UsageError(f"{key} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise UsageError(f"{key} must be at most {high}, got {value}")


@dataclass(frozen=True)
class Config:
    """The base of all tables: types and ranges are checked on construction, unknown keys refused."""

    TABLE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            key = f"{self.TABLE}.{f.name}"
            value = checked_type(key, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)
            choices = f.metadata["choices"]
            if choices and value is not None and value not in choices:
                hint = nearest(str(value), choices)
                raise UsageError(f"{key} must be one of {', '.join(choices)}; got {value!r}{hint}")
            for x in value if isinstance(value, tuple) else (value,):
                if isinstance(x, int | float):
                    check_range(key, x, f.metadata["low"], f.metadata["high"])
        self._complete()
        self._check()

    def _complete(self) -> None:
        """Set what is not given and follows from other values."""

    def _check(self) -> None:
        """Raise UsageError if values contradict each other."""

    def _error(self, message: str) -> UsageError:
        """Return the error that begins with "TABLE."."""
        return UsageError(f"{self.TABLE}.{message}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a parsed TOML table. Raises UsageError for an unknown key, naming those allowed."""
        known = [f.name for f in dataclasses.fields(cls)]
        values = without_retired(cls.TABLE, values)
        for key in values:
            if key not in known:
                hint = f"; allowed are {', '.join(known)}{nearest(key, known)}"
                raise UsageError(f"unknown key {cls.TABLE}.{key}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without None, and without newer options that have their default."""
        values = dataclasses.asdict(self)
        for f in dataclasses.fields(self):
            value = values[f.name]
            if value is None or (f.metadata["later"] and value == f.default):
                del values[f.name]
        return values
