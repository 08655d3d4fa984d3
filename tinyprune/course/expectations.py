"""Check what an answer returns. Every failure has four parts: the input, what it got, what was expected, and a hint.

A hint says where to look, not what to write.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from tinyprune.course.answers import answer
from tinyprune.gradcheck import check_gradients


class Unexpected(AssertionError):
    """An answer is wrong; the message says how."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the message alone, without the lines of the package that compared."""
        return [f"{type(self).__name__}: {self}"]


def show(value: Any) -> str:
    """Describe a value in a few lines: arrays with their shape, long ones cut."""
    if isinstance(value, np.ndarray):
        with np.printoptions(precision=6, suppress=True, threshold=24, edgeitems=3, linewidth=100):
            text = str(value)
        if value.ndim > 1:
            text = "\n" + text
        return f"{value.dtype} array of shape {value.shape}: {text}"
    if isinstance(value, Mapping):
        return "\n".join(f"{k} = {v if isinstance(v, str) else show(v)}" for k, v in value.items())
    if isinstance(value, float | np.floating):
        return f"{float(value):.10g}"
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + " …"


def fail(title: str, *, fed: Any, came: Any, expected: Any, hint: str) -> NoReturn:
    """Raise Unexpected with the four parts."""
    lines = [title]
    for name, value in (("input", fed), ("got", came), ("expected", expected), ("hint", hint)):
        text = value if isinstance(value, str) else show(value)
        text = text if len(text) <= 4000 else text[:4000] + " …"
        lines.append(f"{name:<9} " + text.replace("\n", "\n" + " " * 10))
    raise Unexpected("\n".join(lines)) from None


def expect(condition: bool, title: str, *, fed: Any, came: Any, expected: Any, hint: str) -> None:
    """Raise Unexpected with all four parts unless `condition`; `title` says what is wrong then.

    `fed`, `came` and `expected` are texts or values; a dict shows names and values.
    """
    if not condition:
        fail(title, fed=fed, came=came, expected=expected, hint=hint)


def expect_close(
    came: Any, expected: Any, title: str, *, fed: Any, hint: str, relative: float = 1e-7, absolute: float = 1e-9
) -> None:
    """Fail unless two arrays or numbers have equal shapes and nearly equal entries; name the entry that differs most.

    Nearly equal is |came − expected| ≤ absolute + relative · |expected|. Raises Unexpected with all four parts.
    """
    expected = np.asarray(expected)
    try:
        found = np.asarray(came)
        numbers = found.dtype.kind in "biufc"
    except (ValueError, TypeError):
        numbers = False
    if not numbers:
        fail(title, fed=fed, came=came, expected=f"numbers, shape {expected.shape}", hint=hint)
    if found.shape != expected.shape:
        fail(title, fed=fed, came=f"shape {found.shape}", expected=f"shape {expected.shape}", hint=hint)
    with np.errstate(all="ignore"):
        close = np.abs(found - expected) <= absolute + relative * np.abs(expected)
        same = (found == expected) | (close & np.isfinite(expected))
    if same.all():
        return
    if not found.ndim:
        fail(title, fed=fed, came=found[()], expected=expected[()], hint=hint)
    with np.errstate(all="ignore"):
        distance = np.where(same, 0, np.nan_to_num(np.abs(found - expected), nan=np.inf))
    at = tuple(int(i) for i in np.unravel_index(np.argmax(distance), found.shape))
    wrong = f"{int((~same).sum())} of {same.size} entries differ; the worst is at [{', '.join(map(str, at))}]"
    fail(title, fed=fed, came=f"{show(found[at])}   ({wrong})", expected=show(expected[at]), hint=hint)


def expect_unmodified(function: Callable[..., Any], *inputs: Any) -> None:
    """Raise Unexpected, with the array before and after, if `function(*inputs)` modifies one of its inputs."""
    before = copy.deepcopy(inputs)
    # Otherwise an answer gets copies.
    getattr(function, "in_place", function)(*inputs)
    for old, new in zip(before, inputs, strict=True):
        expect(
            not isinstance(old, np.ndarray) or np.array_equal(old, new, equal_nan=True),
            f"{function.__name__} modifies one of its inputs",
            fed=old,
            came=new,
            expected="the same array, unmodified",
            hint="x += … and x[…] = … write into the array of the caller; x = x + … makes a new one",
        )


def expect_gradients(
    name: str,
    formula: Callable[..., tuple[Any, Any]],
    inputs: Mapping[str, Any],
    *,
    hint: str | Mapping[str, str],
    rng: np.random.Generator | None = None,
    fixed: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> None:
    """Fail unless the answer's backward gives the derivatives of `formula`, measured by `tinyprune.gradcheck`.

    The backward gets the cache of the answer's own forward if that forward is right, so a cache may hold anything. If
    the forward is wrong, missing or modifies its inputs, the backward gets the cache of `formula`, whose contents the
    task describes: a backward can be right although its forward is not.

    Args:
        name: name of the backward, such as "linear_backward".
        formula: `out, cache = formula(*inputs)`, in complex numbers too.
        inputs: name → value, in order; gradients are expected for arrays of floats.
        hint: one for all, or one for each input's gradient ("" for the rest).
        rng: draws the incoming gradient.
        fixed: names of float inputs (or None) without a gradient, such as noise or a temperature.
        only: names of the inputs whose gradients are checked; the other gradients may be anything.

    Raises:
        Unexpected: if a gradient is wrong, or has the wrong shape or number, or if `dout` or the cache was modified.
    """
    # Integers and the like have no gradient.
    asked = [k for k, v in inputs.items() if k not in fixed and (v is None or np.asarray(v).dtype.kind in "fc")]
    chosen = asked if only is None else list(only)
    used = {"cache": "of the formula in the task, since your forward is not right on these inputs", "dout": "random"}
    answered = answer(name).in_place
    hints = {"": hint} if isinstance(hint, str) else hint

    def backward(dout: Any, cache: Any) -> Any:
        gradients = answered(dout, cache)
        if only is None:
            return gradients
        found = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(found) != len(asked):
            number = f"{len(asked)} gradient{'s' * (len(asked) != 1)}"
            raise AssertionError(f"{name}: backward must return {number}, got {len(found)}")
        return tuple(found[asked.index(k)] for k in chosen)

    def forward(*varied: Any) -> tuple[Any, Any]:
        values = inputs | dict(zip(chosen, varied, strict=True))
        dtype = np.result_type(*(v for v in varied if v is not None))
        values |= {k: np.asarray(values[k], dtype) for k in asked if values[k] is not None}
        out, cache = formula(*values.values())
        if dtype.kind == "c":
            return out, cache
        # A copy, because the backward gets the cache before the inputs are varied.
        cache = copy.deepcopy(cache)
        try:
            cache = _own_cache(name, list(values.values()), out)
            used["cache"] = "of your own forward"
        except Exception:
            pass  # marked by the forward's own tests
        return out, cache

    try:
        options = {"name": name, "argument_names": chosen, "mode": "complex", "rng": rng}
        records = check_gradients(forward, backward, *(inputs[k] for k in chosen), **options)
    except AssertionError as error:
        said = {"came": str(error), "expected": "see the task", "hint": hints.get("", "")}
        fail(f"{name} does not keep to its form", fed=shapes(inputs | used), **said)
    for r in records:
        if not r.passed:
            place = f"d{r.argument}[{', '.join(map(str, r.index))}]".removesuffix("[]")
            fail(
                f"{name}: d{r.argument} is not the derivative",
                fed=shapes(inputs | used),
                came=f"{place} = {r.got:.10g}   (the entry that is most wrong)",
                expected=f"{place} = {r.expected:.10g}   (measured: relative error {r.relative_error:.1e})",
                hint=hints.get(r.argument, hints.get("", "")),
            )


def _own_cache(name: str, inputs: list[Any], out: Any) -> Any:
    """Return the cache of the answer's forward. Raises AssertionError if it is wrong or modifies its inputs."""
    given = copy.deepcopy(inputs)
    came, cache = answer(name.removesuffix("_backward") + "_forward").in_place(*given)
    np.testing.assert_equal(given, inputs)
    # As exact as gradients have to be: they are no better than the cache that they are made from.
    np.testing.assert_allclose(came, out, rtol=1e-12, atol=1e-13, strict=True)
    return cache


def shapes(given: Mapping[str, Any]) -> str:
    """Describe the input in a line for each argument."""
    each = {k: v for name, x in given.items() for k, v in (x if isinstance(x, dict) else {name: x}).items()}
    return "\n".join(f"{k} {v.shape}" if isinstance(v, np.ndarray) else f"{k} {v}" for k, v in each.items())
