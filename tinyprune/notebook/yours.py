"""Your functions in place of the textbook's: what you write in one chapter trains in the next ones.

    yours.check(layernorm_backward, ops.layernorm_backward, (dout, cache), hint="…")     compares and keeps it
    with yours.engine() as your_ops:                                                     computes with all that are kept

A function that passes is written to runs/yours/NAME.py; without that file the package's own function computes.
"""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from tinyprune.course.expectations import expect_close, fail
from tinyprune.files import replace_file
from tinyprune.kernels.backend import get_backend
from tinyprune.notebook import REPOSITORY
from tinyprune.ops.attention import AttentionCache
from tinyprune.ops.engine import OPERATIONS, Engine

FOLDER = REPOSITORY / "runs" / "yours"
Function = Callable[..., Any]
# Functions that a chapter asks for in a special case only, and where this is not the case: the package's one is called.
GENERAL: dict[str, Callable[..., bool]] = {
    "attention_backward": lambda dout, cache: (
        not isinstance(cache, AttentionCache) or any(x is not None for x in (cache.r, cache.pk, cache.keep))
    ),
}


def check(yours: Function, ours: Function, *cases: tuple[Any, ...], hint: str) -> None:
    """Compare your function with the package's; if they agree, yours computes in `engine()` from now on.

    Args:
        yours: as you wrote it. It may use `np` and what it defines or imports itself.
        ours: the function of the package that has the same name.
        cases: arguments for both, one tuple for each comparison. They are copied first.
        hint: where to look if they differ.

    Raises:
        Unexpected: if they differ, with the input, what yours returned, what is expected, and the hint.
        NotImplementedError: while it is a stub.
    """
    name = ours.__name__
    written = load(name, textwrap.dedent(inspect.getsource(yours)))  # as it will be read from the file
    errors: dict[str, float] = {}
    for case in cases:
        given = {k: v for k, v in zip(inspect.signature(ours).parameters, case, strict=False) if k != "cache"}
        expected = ours(*copy.deepcopy(case))
        arguments = copy.deepcopy(case, {id(x): x for x in case if hasattr(x, "params")})  # models cannot be compared
        try:
            got = written(*arguments)
        except NameError as error:
            raise NameError(f"{error}: {name} is kept alone, so import or define inside of it what it uses") from None
        try:
            np.testing.assert_equal(arguments, case)
        except AssertionError:
            fail(f"{name} changes its input", fed=shapes(given), came="another array", expected="the same", hint=hint)
        for label, one, other in zip(labels(ours, expected), as_tuple(got, expected), as_tuple(expected), strict=True):
            if other is not None and not isinstance(other, str):
                expect_close(one, other, f"{name}: {label} is wrong", fed=shapes(given), hint=hint, relative=1e-9)
                distance = np.abs(np.asarray(one) - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-300)
                errors[label] = max(errors.get(label, 0.0), float(distance))
    replace_file(FOLDER / f"{name}.py", written.source.encode())
    digits = ", ".join(f"{label} to {error:.0e}" for label, error in errors.items())
    print(f"passed: {digits}. Your {name} computes from here on.")


def labels(ours: Function, result: Any) -> list[str]:
    """Return a name for each result: of a backward pass d and the argument's, as the forward's signature has them."""
    count = len(as_tuple(result))
    forward = getattr(sys.modules[ours.__module__], ours.__name__.replace("_backward", "_forward"), ours)
    if ours.__name__.endswith("_backward"):
        return [f"d{name}" for name in inspect.signature(forward).parameters][:count]
    return ["result"] if count == 1 else [f"result {i}" for i in range(count)]


def as_tuple(result: Any, like: Any = None) -> tuple[Any, ...]:
    """Return a result as a tuple; raise Unexpected if it has not as many parts as `like`."""
    parts = tuple(result.values()) if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
    if like is not None and len(parts) != len(as_tuple(like)):
        wanted = f"{len(as_tuple(like))} results"
        fail("not as many results as asked for", fed="", came=f"{len(parts)}", expected=wanted, hint="")
    return parts


def shapes(given: dict[str, Any]) -> str:
    """Describe the input in a line for each argument."""
    return "\n".join(f"{k} {v.shape}" if isinstance(v, np.ndarray) else f"{k} {v}" for k, v in given.items())


def load(name: str, source: str) -> Any:
    """Return the function `name` of a source that stands alone, with its `source` as an attribute."""
    space: dict[str, Any] = {"np": np, "__name__": "yours"}
    linecache.cache[f"<yours {name}>"] = (len(source), None, source.splitlines(keepends=True), f"<yours {name}>")
    exec(compile(source, f"<yours {name}>", "exec"), space)
    space[name].source = source
    return space[name]


@contextmanager
def engine(backend: str = "numpy") -> Iterator[Engine]:
    """In this context your functions compute: operations of the engine that it yields, and others wherever called.

    Args:
        backend: what computes the rest, as for `get_backend`.
    """
    kept = {path.stem: load(path.stem, path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.py"))}
    ops = get_backend(backend)
    calls = dict.fromkeys(kept, 0)
    own = {name: counted(f, getattr(ops, name), calls) for name, f in kept.items() if name in OPERATIONS}
    for name in [name for name in own if name.endswith("_backward")]:  # with the forward pass whose cache it knows
        forward = name.replace("_backward", "_forward")
        own.setdefault(forward, textbook(forward, getattr(ops, forward)))
    made = type("Yours", (type(ops),), {name: staticmethod(f) for name, f in own.items()})()
    with ExitStack() as stack:
        for name in kept.keys() - own.keys():
            for module in [m for n, m in sys.modules.items() if n.startswith("tinyprune.") and hasattr(m, name)]:
                stack.enter_context(mock.patch.object(module, name, counted(kept[name], getattr(module, name), calls)))
        yield made
    told = [f"{name} ({count:,} times)" for name, count in calls.items() if count]
    print("computed by your functions:", ", ".join(told) or "nothing; the exercises of the chapters fill this line")


def textbook(name: str, compiled: Function) -> Function:
    """Return the textbook's forward pass; attention with `r`, persistent vectors or dropout stays `compiled`."""

    def forward(*args: Any, **options: Any) -> Any:
        general = name == "attention_forward" and (any(x is not None for x in args[3:8]) or options.get("dropout"))
        return (compiled if general else getattr(Engine(), name))(*args, **options)

    return forward


def counted(yours: Function, ours: Function, calls: dict[str, int]) -> Function:
    """Return your function, counted; in a case that it was not asked for, ours."""
    name, general = yours.__name__, GENERAL.get(yours.__name__, lambda *args, **options: False)

    @functools.wraps(ours)
    def function(*args: Any, **options: Any) -> Any:
        if general(*args, **options):
            return ours(*args, **options)
        calls[name] += 1
        return yours(*args, **options)

    return function
