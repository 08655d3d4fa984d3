"""Your functions in place of the textbook's: what you write in one chapter computes in the next ones.

    yours.check(layernorm_backward, ops.layernorm_backward, (dout, cache), hint="…")     compares and keeps it
    with yours.engine() as your_ops:                                                     computes with all that are kept

A function that passes is written to runs/yours/NAME.py, or to the folder that the environment variable TINYPRUNE_YOURS
names; without that file the package's own function computes.
"""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tinyprune.course.expectations import expect_close, fail, shapes
from tinyprune.io.files import replace_file
from tinyprune.kernels.backend import get_backend
from tinyprune.notebook import REPOSITORY, attempts
from tinyprune.ops import take_slices
from tinyprune.ops.attention import AttentionCache
from tinyprune.ops.engine import OPERATIONS, Engine

FOLDER = Path(os.environ.get("TINYPRUNE_YOURS", REPOSITORY / "runs" / "yours"))
Function = Callable[..., Any]


def given(*optional: Any) -> bool:
    """Return whether any of these arguments is given."""
    return any(x is not None for x in optional)


DTYPE = "np.float64 numbers, such as np.sqrt(Dh), and np.zeros without a dtype make float64; Python's numbers do not"
FEW = 6  # numbers of an array that a message shows

# What a chapter does not ask of a function; the package's one computes it.
GENERAL: dict[str, Callable[..., bool]] = {
    "attention_backward": lambda dout, cache, **_: (
        not isinstance(cache, AttentionCache) or given(cache.r, cache.pk, cache.keep)
    ),
    "attention_forward": lambda *args, dropout=0.0, **_: given(*args[3:8]) or dropout > 0,
    "hard_concrete_forward": lambda log_alpha, *_, **options: np.iscomplexobj(log_alpha),
    "take_heads": lambda p, heads, Dh, take=take_slices, groups=None: (
        "net.pk" not in p or take is not take_slices or groups is not None
    ),
}


@attempts.noted
def check(
    yours: Function,
    ours: Function,
    *cases: tuple[Any, ...],
    hint: str | Mapping[str, str],
    results: Sequence[str] = (),
) -> None:
    """Compare your function with the package's; if they agree, yours computes in `engine()` from now on.

    Args:
        yours: as you wrote it. It may use `np` and what it defines or imports itself.
        ours: the function of the package that has the same name.
        cases: arguments for both, one tuple for each comparison, copied first; a dict at its end: keywords.
        hint: where to look if they differ; or for each result its own, by its name, "dtype" where its numbers are of
            another kind, and "" for all else; without "" all of them are shown there.
        results: names of the results, where they are not those of a forward or backward pass.

    Raises:
        Unexpected: if they differ, or yours makes float64 of float32; with the input, both results, and the hint.
        NotImplementedError: while it is a stub.
    """
    name, names = ours.__name__, inspect.signature(ours).parameters
    written = load(name, textwrap.dedent(inspect.getsource(yours)))  # as it will be read from the file
    hints = {"": hint} if isinstance(hint, str) else {"": "; ".join(hint.values())} | hint
    errors: dict[str, float] = {}
    for case in cases:
        *values, options = case
        if not (isinstance(options, dict) and options.keys() <= names.keys()):
            values, options = list(case), {}
        given = dict(zip(names, values, strict=False)) | options
        if "cache" in given:
            given["cache"] = named_parts(given["cache"], written.source)
        fed = shown(given)
        wrong = functools.partial(fail, fed=fed, hint=hints[""])
        expected = ours(*copy.deepcopy(values), **options)
        models = {id(x): x for x in values if hasattr(x, "params")}  # each stays itself
        arguments = copy.deepcopy(values, dict(models))
        try:
            got = written(*arguments, **options)
        except NameError as error:
            advice = f"{name} is kept alone, so import or define inside of it what it uses"
            raise NameError(f"{error}: {advice}") from None
        try:
            np.testing.assert_equal(arguments, values)
        except AssertionError:
            wrong(f"{name} changes its input", came="another array", expected="the same")
        told = results or labels(ours, expected)
        if [len(parts(x)) for x in parts(got)] != [len(parts(x)) for x in parts(expected)]:
            title = f"{name}: not as many results as asked for"
            wrong(title, came=counted_parts(got), expected=f"{counted_parts(expected)}: {', '.join(told)}")
        single = copies_in_float32(values)
        both = [flat(f(*copy.deepcopy(values, models | single), **options)) for f in (written, ours)]
        found = zip(told, flat(got), flat(expected), *both, strict=True)
        for label, one, other, one_single, other_single in found:
            if other is not None and not isinstance(other, str):
                own = hints.get(label, hints[""])
                if np.shape(one) != np.shape(other) and np.shape(one) in map(np.shape, flat(expected)):
                    own += "; or are the results in another order than asked for?"
                expect_same(one, other, f"{name}: {label} is wrong", fed, own, hints.get("dtype", own))
                errors[label] = max(errors.get(label, 0.0), relative_error(one, other * 1))
            if (dtype_name(one_single), dtype_name(other_single)) == ("float64", "float32"):
                title = f"{name}: {label} is float64 where the input is float32"
                fail(title, fed=fed, came="float64", expected="float32", hint=hints.get("dtype", DTYPE))
    replace_file(FOLDER / f"{name}.py", written.source.encode())
    compared = list(errors)
    if len(compared) >= 5:  # the first and the worst
        compared = list(dict.fromkeys([compared[0], max(compared, key=lambda label: errors[label])]))
    digits = [f"{label} to {errors[label]:.0e}" if errors[label] else f"{label} exactly" for label in compared]
    if len(compared) < len(errors):
        digits.append(f"and {len(errors) - len(compared)} more")
    print(f"passed: {', '.join(digits)}. Your {name} computes from here on.")


def expect_same(one: Any, other: Any, title: str, fed: str, hint: str, of_dtype: str) -> None:
    """Raise Unexpected unless a result is the package's, up to rounding; truth values are no floats."""
    dtype = np.asarray(other).dtype
    if dtype_name(one) == "bool" and dtype.kind == "f":
        came = "bool: truth values, with which later chapters cannot compute"
        fail(title, fed=fed, came=came, expected=str(dtype), hint=of_dtype)
    # times 1: numbers for truth values, which have no difference
    expect_close(one, other * 1, title, fed=fed, hint=hint, relative=1e-9)


def named_parts(cache: Any, source: str) -> Any:
    """Return what a tuple holds by names: its own, those that the function unpacks it to, or cache[0], cache[1] …"""
    if not isinstance(cache, tuple):
        return cache
    unpacked = re.search(r"^ +([\w, ]+) = cache\b", source, re.MULTILINE)
    names = getattr(cache, "_fields", unpacked[1].split(", ") if unpacked else ())
    if len(names) != len(cache):
        names = [f"cache[{i}]" for i in range(len(cache))]
    return dict(zip(names, cache, strict=True))


def shown(given: Mapping[str, Any]) -> str:
    """Describe what a function was given, a line each: the shape of an array and, of a few numbers, these."""
    each = {k: v for name, x in given.items() for k, v in (x if isinstance(x, dict) else {name: x}).items()}
    few = {
        k: f"{v.shape}: {np.array2string(v, precision=4)}"
        for k, v in each.items()
        if isinstance(v, np.ndarray) and v.ndim == 1 and v.size <= FEW
    }
    return shapes({k: few.get(k, v) for k, v in each.items() if v is not None})


def counted_parts(result: Any) -> str:
    """Say how many results a function returned, and how many parts a cache or another tuple among them has."""
    each = [len(parts(x)) for x in parts(result)]
    some = [f"{n} parts in number {i}" for i, n in enumerate(each, 1) if n != 1]
    return ", ".join(["one result" if len(each) == 1 else f"{len(each)} results", *some])


def copies_in_float32(values: list[Any]) -> dict[int, Any]:
    """Return a copy of each array of float64 in the values, by its id, as `copy.deepcopy` takes them."""
    arrays = [x for value in values for x in flat(value) if dtype_name(x) == "float64"]
    return {id(x): x.astype(np.float32) for x in arrays}


def dtype_name(x: Any) -> str:
    """Return the name of a dtype; "" of what has none."""
    return str(getattr(x, "dtype", ""))


def relative_error(got: Any, expected: Any) -> float:
    """Return the largest difference, as a share of the largest number that was expected."""
    distance = np.abs(np.asarray(got) - expected).max(initial=0)
    return float(distance / max(np.abs(expected).max(initial=0), 1e-300))


def labels(ours: Function, result: Any) -> list[str]:
    """Return a name for each result: of a backward pass d and the argument's, as the forward's signature has them."""
    count, name = len(flat(result)), ours.__name__
    if isinstance(result, dict):
        return sorted(result)
    if name.endswith("_backward"):
        forward = getattr(sys.modules[ours.__module__], name.replace("_backward", "_forward"), ours)
        return [f"d{argument}" for argument in inspect.signature(forward).parameters][:count]
    if name.endswith("_forward"):
        return ["out", *(f"cache[{i}]" for i in range(count - 1))]
    return ["result", *(f"result {i}" for i in range(1, count))]


def parts(x: Any) -> tuple[Any, ...]:
    """Return what a tuple or a dictionary holds, in the order of its names, or the thing alone."""
    if isinstance(x, dict):
        return tuple(x[k] for k in sorted(x))
    return x if isinstance(x, tuple) else (x,)


def flat(result: Any) -> tuple[Any, ...]:
    """Return a result, and tuples in it, as one tuple."""
    return tuple(y for part in parts(result) for y in parts(part))


def load(name: str, source: str) -> Any:
    """Return the function `name` of a source that stands alone, with its `source` as an attribute."""
    space: dict[str, Any] = {"np": np, "__name__": "yours"}
    file = f"<yours {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), space)
    space[name].source = source
    return space[name]


@contextmanager
def engine(backend: str = "numpy") -> Iterator[Engine]:
    """In this context your functions compute: operations of the engine that it yields, and others wherever called.

    Args:
        backend: what computes the rest, as for `get_backend`. The forward pass of your backward is the textbook's.
    """
    paths = sorted(FOLDER.glob("*.py"))
    kept = {path.stem: load(path.stem, path.read_text(encoding="utf-8")) for path in paths}
    ops, calls = get_backend(backend), dict.fromkeys(kept, 0)
    forwards = [name.replace("_backward", "_forward") for name in kept if "_backward" in name]
    own = {name: getattr(Engine, name) for name in forwards if name in OPERATIONS} | kept
    own = {name: function for name, function in own.items() if name in OPERATIONS}
    methods = {name: counted(name, f, getattr(ops, name), calls) for name, f in own.items()}
    made = type("Yours", (type(ops),), {name: staticmethod(f) for name, f in methods.items()})()
    modules = [module for name, module in sys.modules.items() if name.startswith("tinyprune.")]
    with ExitStack() as stack:
        for name in kept.keys() - own.keys():
            for module in [module for module in modules if hasattr(module, name)]:
                function = counted(name, kept[name], getattr(module, name), calls)
                stack.enter_context(mock.patch.object(module, name, function))
        yield made
    told = [f"{name} ({count:,} times)" for name, count in calls.items() if count]
    nothing = "nothing; the exercises of the chapters fill this line"
    print("computed by your functions:", ", ".join(told) or nothing)


def counted(name: str, yours: Function, ours: Function, calls: dict[str, int]) -> Function:
    """Return your function, counted, which gets the arguments that it takes; where it was not asked for, ours."""
    takes = inspect.signature(yours).parameters

    @functools.wraps(ours)
    def function(*args: Any, **options: Any) -> Any:
        if name in GENERAL and GENERAL[name](*args, **options):
            return ours(*args, **options)
        if name in calls:
            calls[name] += 1
        return yours(*args[: len(takes)], **{k: v for k, v in options.items() if k in takes})

    return function
