"""The gradient checker: is `backward` the derivative of `forward`?

Any pair in the form of this package can be checked, whoever wrote it:

    out, cache = forward(*inputs)              out: an array, a scalar or a tuple of arrays
    gradients  = backward(dout, cache)         one for each input that is an array of floats, in order

A random `dout` (a tuple if `out` is one) turns the output into one number, f = Σ dout · out. Its derivative with
respect to each entry x is measured in one of two ways and compared with what `backward` says:

    complex   Im f(x + ih) / h, h = 1e-20            no subtraction, so no digit is lost: right to about 1e-15
    central   (f(x + h) − f(x − h)) / 2h, h = 3e-6   loses half of them; for functions that refuse complex numbers

(complex step: Squire & Trapp 1998.) A gradient g passes beside its measurement n when

    ‖g − n‖ ≤ tolerance · (‖g‖ + ‖n‖ + floor · min(1, Σ |dout · out|))

The last factor makes the floor small where outputs are small. The norms are those of a whole tensor: entries that are
truly zero, such as the gradient of attention's key bias, are measured as rounding noise, so that their relative errors
say nothing.
"""

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.io.progress import duration, say

Function = Callable[[NDArray], complex]  # Σ dout · out of an input
# mode: (tolerance, floor). Central: ‖g − n‖ ≤ 1e-7 (‖g‖ + ‖n‖) + 1e-8.
CRITERIA = {"complex": (1e-12, 1e-2), "central": (1e-7, 1e-1)}
CALLS = {"complex": 3, "central": 2}  # what measuring an entry costs, in calls of forward with real numbers
COMPLEX_H = 1e-20
SLOW = 10.0  # seconds of a check of every entry, above which `directions` is suggested
# Near the cube root of float64's rounding, where the errors of truncation and of rounding are alike.
CENTRAL_H = 3e-6


@dataclass(frozen=True)
class GradientRecord:
    """How one gradient compares with its measurement.

    `relative_error` is ‖g − n‖ / (‖g‖ + ‖n‖ + floor); `index` is where g and n differ most, `expected` = n and
    `got` = g there. For a directional check `index` is empty and the two numbers are derivatives along the direction.
    """

    operation: str
    argument: str
    mode: str
    relative_error: float
    passed: bool
    index: tuple[int, ...]
    expected: float
    got: float
    kink: str = ""  # where the forward has no derivative, the two from the left and from the right

    def message(self) -> str:
        """Return what a failing test prints."""
        place, tolerance = self.argument, CRITERIA[self.mode][0]
        if self.index:
            place += str(list(self.index))
        return (
            f"{self.operation}: wrong gradient with respect to {self.argument}\n"
            f"    relative error {self.relative_error:.2e} (allowed {tolerance:.0e}, {self.mode} mode)\n"
            f"    worst at {place}: expected {self.expected:+.12e}, got {self.got:+.12e}{self.kink}"
        )


def check_gradients(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    *inputs: Any,
    mode: str = "complex",
    name: str | None = None,
    argument_names: Sequence[str] | None = None,
    rng: np.random.Generator | None = None,
    directions: int | None = None,
    **unknown: Any,
) -> list[GradientRecord]:
    """Compare every gradient of `backward` with the measured derivative of `forward`.

    Args:
        forward: `forward(*inputs) -> (out, cache)`; must give the same output for the same input: with a fixed seed.
        backward: `backward(dout, cache) -> gradient or tuple of gradients`, in the order of `inputs`, with None for an
            input that is None, and None or nothing for one that has no gradient (integers and the like).
        inputs: arrays of floats, lists of such arrays, None, or anything else, which is passed on as it is.
        mode: "complex" (the forward must pass complex numbers through) or "central".
        name: of the operation; by default the name of `forward`.
        argument_names: of the inputs; by default those of the signature of `forward`.
        rng: draws `dout` and the directions; by default a fixed seed.
        directions: None measures every entry. A number measures that many random directions of each tensor instead, one
            forward each, which sees all entries of a large tensor at once.
        unknown: refused; arguments of `forward` that are no inputs are passed by a lambda, as the message shows.

    Returns:
        a record for each gradient.

    Raises:
        AssertionError: if `backward` gives a wrong number of gradients, a wrong shape, or modifies `dout` or its cache,
            or if `forward` modifies its inputs, gives other numbers when it is called again, or does not return two
            values, or numbers that are not finite, or float32 in the mode "central".
        ValueError: if `mode` is not known, `directions` is below 1, `argument_names` are not one for each input, or an
            input is not finite, empty, complex or a list of numbers, or no input has a gradient.
        TypeError: for an `unknown` option.
    """
    _check_options(forward, mode, directions, unknown)
    name = str(name or getattr(forward, "__name__", "operation"))
    rng = rng or np.random.default_rng(0)
    labels = list(argument_names or _names(forward, len(inputs)))
    slots = _with_gradients(name, labels, inputs)
    inputs = tuple(_convert(value, np.float64) for value in inputs)

    untouched, start = copy.deepcopy(inputs), time.perf_counter()
    out, cache = _two(name, forward(*inputs))
    seconds = time.perf_counter() - start
    _check_output(name, out, mode)
    for label, before, after in zip(labels, untouched, inputs, strict=True):
        if isinstance(before, np.ndarray | list) and not _equal(before, after):
            raise AssertionError(f"{name}: forward must not modify {label}")
    if not _equal(out, _two(name, forward(*copy.deepcopy(inputs)))[0]):
        raise AssertionError(
            f"{name}: two calls of forward with the same inputs differ, so that nothing can be measured; "
            "fix its random numbers, as by np.random.default_rng(0) within it"
        )
    dout = tuple(_draw(rng, part) for part in out) if isinstance(out, tuple) else _draw(rng, out)
    wanted = [_has_gradient(value) for value in inputs]
    gradients = _run_backward(name, backward, dout, cache, wanted)
    if directions is None:
        _say_if_slow(name, CALLS[mode] * seconds, slots)
    size = sum(float(np.abs(d * o).sum()) for d, o in zip(leaves(dout), leaves(out), strict=True))
    records = []
    for (label, value), gradient in zip(slots, gradients, strict=True):
        position = labels.index(label)
        for number, (part, x, g) in enumerate(_matched(name, label, value, gradient)):

            def f(x: NDArray, position: int = position, number: int = number) -> complex:
                """Return Σ dout · out with x in the place of one array of the inputs."""
                values = [_convert(v, np.result_type(x)) for v in inputs]
                if isinstance(values[position], list):
                    values[position][number] = x
                else:
                    values[position] = x
                outputs = leaves(_two(name, forward(*values))[0])
                return sum((d * out).sum() for d, out in zip(leaves(dout), outputs, strict=True))

            for drawing in [None] if directions is None else [rng] * directions:
                records.append(_compare(name, part, mode, f, x, g, size, drawing))
    return records


def assert_gradients(forward: Callable, backward: Callable, *inputs: Any, **options: Any) -> None:
    """`check_gradients`, with its options, as a test: AssertionError names function, argument, worst entry and numbers.

    assert_gradients(linear_forward, linear_backward, x, W, b)
    """
    records = check_gradients(forward, backward, *inputs, **options)
    failures = [record.message() for record in records if not record.passed]
    if failures:
        raise AssertionError("\n".join(failures))


def _check_options(forward: Callable, mode: str, directions: int | None, unknown: dict[str, Any]) -> None:
    """Raise TypeError for an option that there is not, and ValueError for a value that is not allowed."""
    for option, value in unknown.items():
        raise TypeError(
            f"{option} is no option of this check; an argument of the function is passed by a lambda: "
            f"lambda *inputs: {getattr(forward, '__name__', 'forward')}(*inputs, {option}={value!r})"
        )
    if mode not in CRITERIA:
        raise ValueError(f"mode must be one of {', '.join(CRITERIA)}, got {mode!r}")
    if directions is not None and directions < 1:
        raise ValueError(f"directions must be at least 1, or None for every entry, got {directions}")


def _say_if_slow(name: str, seconds: float, slots: list[tuple[str, Any]]) -> None:
    """Say how long it takes to check every entry, in `seconds` each, and what is faster, if that is long."""
    about = seconds * sum(np.size(x) for _, value in slots for x in leaves(value))
    if about > SLOW:
        better = "directions=4 sees as much in far less"
        say(f"{name}: checking every entry takes about {duration(about)}; {better}")


def _names(forward: Callable, count: int) -> list[str]:
    """Return the names of the first `count` positional arguments, or x0, x1, … where the signature has fewer."""
    try:
        found = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        found = {}.values()
    named = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named[:count] if len(named) >= count else [f"x{i}" for i in range(count)]


def _two(name: str, result: Any) -> tuple[Any, Any]:
    """Return output and cache; AssertionError if forward has returned anything else."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    what = f"{len(result)} values" if isinstance(result, tuple) else f"one {type(result).__name__}"
    raise AssertionError(
        f"{name}: forward must return (out, cache), where out may be a tuple of several outputs "
        f"and cache anything that backward needs, or None; got {what}"
    )


def _check_output(name: str, out: Any, mode: str) -> None:
    """Raise AssertionError unless an output is finite numbers, precise enough for the mode."""
    parts = list(out) if isinstance(out, tuple) else [out]
    for part in parts:
        if isinstance(part, list | dict) or np.asarray(part).dtype.kind not in "fciub":
            raise AssertionError(
                f"{name}: out must be an array, a number or a tuple of these, got {type(part).__name__} "
                f"{'' if part is out else 'in a tuple'}".rstrip()
            )
        if not np.isfinite(part).all():
            raise AssertionError(f"{name}: forward gives numbers that are not finite; choose other inputs, or mend it")
        if mode == "central" and np.asarray(part).dtype in (np.float16, np.float32):
            kind = np.asarray(part).dtype
            raise AssertionError(f"{name}: forward computes in {kind}, where differences are rounding; use float64")


def _with_gradients(name: str, labels: list[str], inputs: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return label and value of the inputs that have a gradient; see `check_gradients` for what is refused."""
    if len(labels) != len(inputs):
        raise ValueError(f"argument_names must be {len(inputs)}, one for each input, got {len(labels)}")
    named = list(zip(labels, inputs, strict=True))
    for label, value in named:
        if isinstance(value, list | tuple) and any(isinstance(x, int | float | list) for x in value):
            kind = type(value).__name__
            raise ValueError(f"{name}: {label} must be an array, got a {kind}; give np.array({label})")
    slots = [(label, value) for label, value in named if _has_gradient(value)]
    if not any(value is not None for _, value in slots):
        kinds = ", ".join(f"{label} of {getattr(value, 'dtype', type(value).__name__)}" for label, value in named)
        raise ValueError(f"{name}: no input is an array of floats, so that there is nothing to check; got {kinds}")
    for label, value in slots:
        if any(np.iscomplexobj(leaf) for leaf in leaves(value)):
            raise ValueError(f"{name}: {label} must be real, got complex numbers")
        if any(not np.size(leaf) for leaf in leaves(value)):
            raise ValueError(f"{name}: {label} must not be empty: there would be nothing to check")
        if not all(np.isfinite(leaf).all() for leaf in leaves(value)):
            raise ValueError(f"{name}: {label} must be finite to be checked")
    return slots


def _matched(name: str, label: str, value: Any, gradient: Any) -> list[tuple[str, NDArray, NDArray]]:
    """Return the label, value and gradient of each array of an input; AssertionError if number or shapes differ."""
    if value is None and gradient is not None:
        raise AssertionError(f"{name}: the gradient of {label}, which is None, must be None, got an array")
    arrays, found = leaves(value), leaves(gradient)
    if len(found) != len(arrays):
        raise AssertionError(f"{name}: {len(arrays)} gradients expected for {label}, got {len(found)}")
    several, matched = isinstance(value, list | tuple), []
    for i, (x, g) in enumerate(zip(arrays, found, strict=True)):
        part = f"{label}[{i}]" if several else label
        if np.shape(g) != np.shape(x):
            shapes = f"must have shape {np.shape(x)}, got {np.shape(g)}"
            raise AssertionError(f"{name}: gradient of {part} {shapes}")
        matched.append((part, np.asarray(x, np.float64), np.asarray(g, np.float64)))
    return matched


def _draw(rng: np.random.Generator, out: Any) -> Any:
    """Draw a gradient with respect to an output: normal numbers, or for a scalar one from 0.5 to 2."""
    return rng.standard_normal(np.shape(out)) if np.ndim(out) else float(rng.uniform(0.5, 2))


def _has_gradient(value: Any) -> bool:
    """Return whether this is a float array, a list of them, or None (an argument left out, whose gradient is None)."""
    if isinstance(value, list | tuple):
        return all(_has_gradient(v) for v in value)
    return value is None or np.issubdtype(np.asarray(value).dtype, np.inexact)


def leaves(value: Any) -> list:
    """Return the arrays of an argument or result, which is an array, a list of arrays, or None, as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def as_tuple(value: Any) -> tuple:
    """Return a tuple as it is, and anything else as the only one of a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _equal(a: Any, b: Any) -> bool:
    """Return whether both hold the same numbers in the same places, NaN being equal to NaN."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(np.array_equal(np.complex128(x), np.complex128(y), equal_nan=True) for x, y in pairs)


def _convert(value: Any, dtype: Any) -> Any:
    """Return a copy: of float arrays (and lists of them) with `dtype`, of other arrays with their dtype."""
    if value is None or not _has_gradient(value):
        return value.copy() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple):
        return [np.array(v, dtype) for v in value]
    return np.array(value, dtype)


def _run_backward(name: str, backward: Callable, dout: Any, cache: Any, wanted: list[bool]) -> list:
    """Return the gradients of the inputs that are `wanted`; the others may have None, or nothing at all.

    `backward` is called twice: the results differ if the first call modified the cache.
    """
    given, several = copy.deepcopy(dout), sum(wanted) > 1
    gradients = _gradients(backward(given, cache), several)
    if not _equal(given, dout):
        raise AssertionError(f"{name}: backward must not modify dout")
    first = copy.deepcopy(gradients)
    count, expected = len(gradients), sum(wanted)
    if count == len(wanted) and count > expected:
        pairs = list(zip(gradients, wanted, strict=True))
        if all(own or g is None for g, own in pairs):
            gradients = [g for g, own in pairs if own]
    if len(gradients) != expected:
        plural = "gradient" if expected == 1 else "gradients"
        raise AssertionError(
            f"{name}: backward must return {expected} {plural}, got {count} "
            "(one for each input of floats; others may have None)"
        )
    for a, b in zip(first, _gradients(backward(given, cache), several), strict=True):
        if not _equal(a, b):
            raise AssertionError(f"{name}: backward must not modify its cache: called again it gave another result")
    return gradients


def _gradients(result: Any, several: bool) -> list:
    """Return what backward gave as a list; a list is that of one input, unless there are several."""
    return list(result) if several and isinstance(result, list) else list(as_tuple(result))


def _derivative(mode: str, f: Function, x: NDArray, direction: NDArray, name: str) -> float:
    """Return d f(x + t · direction) / dt at t = 0."""
    if mode == "complex":
        with warnings.catch_warnings():
            # astype(float) warns that it drops the imaginary part; the message below says what to do.
            warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
            value = f(x + 1j * COMPLEX_H * direction)
        if not np.iscomplexobj(value):
            raise AssertionError(
                f"{name}: forward turned complex inputs into a real output, so there is no complex step "
                "to take. Look for an astype, a float() or an array created as float64; or use mode='central'."
            )
        return float(np.imag(value)) / COMPLEX_H
    step = CENTRAL_H * direction
    return float(np.real(f(x + step) - f(x - step))) / (2 * CENTRAL_H)


def _compare(
    name: str, argument: str, mode: str, f: Function, x: NDArray, g: NDArray, size: float, rng: Any = None
) -> GradientRecord:
    """Compare a gradient entry by entry, or if there is a generator along one direction that it draws.

    `size` is Σ |dout · out|.
    """
    tolerance, floor = CRITERIA[mode]
    floor *= min(1.0, size)
    index: tuple[int, ...] = ()
    if rng is None:
        n = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            direction = np.zeros_like(x)
            direction[place] = 1
            n[place] = _derivative(mode, f, x, direction, name)
        norms = float(np.linalg.norm(g) + np.linalg.norm(n) + floor)
        error = float(np.linalg.norm(g - n)) / max(norms, 1e-300)
        distance = np.where(np.isfinite(g), np.abs(g - n), np.inf)
        index = tuple(map(int, np.unravel_index(np.argmax(distance), x.shape)))
        expected, got = float(n[index]), float(g[index])
    else:
        direction = rng.standard_normal(x.shape)
        expected, got = _derivative(mode, f, x, direction, name), float((g * direction).sum())
        # The rounding of a sum of many products is relative to their size, not to what is left of them.
        product = float(np.linalg.norm(g) * np.linalg.norm(direction))
        error = abs(got - expected) / max(abs(expected) + abs(got) + product + floor, 1e-300)
    passed = bool(error <= tolerance)
    kink = _unseen(f, x, g, mode, name) or _kink(f, x, index) if index and not passed else ""
    return GradientRecord(name, argument, mode, error, passed, index, expected, got, kink)


def _unseen(f: Function, x: NDArray, g: NDArray, mode: str, name: str) -> str:
    """Return the words that the complex step does not see what differences see, if these agree with g; else ""."""
    if mode != "complex":
        return ""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[place] = 1
        slopes[place] = _derivative("central", f, x, direction, name)
        if not abs(slopes[place] - g[place]) <= 1e-5 * abs(g[place]) + 1e-8:
            return ""
    return (
        "\n    differences of real numbers agree with this gradient: forward has an np.abs, a conjugate or the like, "
        "through which no complex step goes; use mode='central'"
    )


def _kink(f: Function, x: NDArray, index: tuple[int, ...]) -> str:
    """Return the words that f has no derivative at an entry of x; "" if it has.

    Of a smooth function the slopes to the left and to the right come closer to each other as the step shrinks.
    """
    gaps, slopes = [], (0.0, 0.0)
    for step in (1e-4, 1e-5):
        direction = np.zeros_like(x)
        direction[index] = step
        left, here, right = (float(np.real(f(x + side * direction))) for side in (-1, 0, 1))
        slopes = (here - left) / step, (right - here) / step
        gaps.append(abs(slopes[0] - slopes[1]))
    if gaps[1] < max(0.5 * gaps[0], 1e-6):
        return ""
    return (
        "\n    forward has no derivative there, but a kink: "
        f"from the left {slopes[0]:+.6g}, from the right {slopes[1]:+.6g}; choose other inputs"
    )
