"""The messages between the process that tests and the process that runs an answer.

A message is a JSON head and the raw arrays that it refers to. It contains no pickle, so whatever the answer's process
sends is data and nothing else. Numbers, texts, arrays, tuples, lists, dicts and generators can travel, and functions
too: only a number goes over the wire, and calling it sends a message back.

    8 bytes  length of the head, little endian        head  {"value": tree, "arrays": [[dtype, shape], …], …}
    8 bytes  length of the rest                       rest  the arrays' bytes, one after the other
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = "biufcSU"  # of arrays: numbers and texts; no structures, no objects
PLAIN = (type(None), bool, int, float, str)
MAX_BYTES = 1 << 28
MAX_HEAD_BYTES = 1 << 24  # JSON takes up to twenty times its length as Python objects


class WireError(Exception):
    """A value that cannot travel, or bytes that are not a message."""


class Kept:
    """A stand-in for an object that stayed on the other side; handed back, it is that object again."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<cache {self.number}>"


def encode(value: Any, arrays: list[np.ndarray], keep: Callable[[Any], int], far: type | None = None) -> Any:
    """Return `value` as a tree for JSON. Raises WireError for an array of objects.

    Args:
        arrays: receives the arrays in `value`, not copies.
        keep: stores a function, or an object that cannot travel, and returns its number.
        far: the class of stand-ins for objects on the other side, which become those objects again there.
    """
    if far is not None and isinstance(value, far):
        return {"yours": value.number}
    if isinstance(value, PLAIN) and type(value) in PLAIN:
        # JSON has no infinity
        return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value
    if type(value) is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in KINDS:
            raise WireError(f"an array of {value.dtype} cannot be handed over; numbers can")
        arrays.append(np.asarray(value))
        return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
    if type(value) in (tuple, list):
        return {type(value).__name__: [encode(v, arrays, keep, far) for v in value]}
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode(v, arrays, keep, far) for k, v in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": encode(value.bit_generator.state, arrays, keep, far)}
    return {"call" if callable(value) else "kept": keep(value)}


def decode(
    tree: Any,
    arrays: list[np.ndarray],
    function: Callable[[int], Any],
    mine: Callable[[int], Any] | None = None,
    far: Callable[[int], Any] = Kept,
) -> Any:
    """Return the value that `encode` made `tree` of. Raises WireError if it was not made by `encode`.

    Args:
        function: makes the stand-in for function number n of the other side.
        mine: returns object n that was kept on this side.
        far: makes the stand-in for object n that was kept on the other side.
    """
    left = dict(enumerate(arrays))

    def value(tree: Any) -> Any:
        if isinstance(tree, PLAIN):
            return tree
        if not isinstance(tree, dict) or len(tree) != 1:
            raise WireError(f"not a message: {tree!r:.80}")
        ((kind, content),) = tree.items()
        match kind:
            case "float":
                return float(content)
            case "complex":
                return complex(*map(float, content))
            case "array":
                # Each only once: a list with one large array a thousand times would fill the memory.
                return left.pop(content)
            case "scalar":
                return left.pop(content)[()]
            case "tuple":
                return tuple(map(value, content))
            case "list":
                return list(map(value, content))
            case "dict":
                return {str(k): value(v) for k, v in content.items()}
            case "generator":
                state = value(content)
                bits = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}[state["bit_generator"]]()
                bits.state = state
                return np.random.Generator(bits)
            case "call":
                return function(int(content))
            case "kept":
                return far(int(content))
            case "yours" if mine is not None:
                return mine(int(content))
        raise WireError(f"not a message: {tree!r:.80}")

    try:
        return value(tree)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise WireError(f"not a message: {type(error).__name__}") from error


def pack(head: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """Return a message as bytes."""
    head = head | {"arrays": [[a.dtype.str, a.shape] for a in arrays]}
    text = json.dumps(head).encode()
    rest = b"".join(a.tobytes() for a in arrays)
    return struct.pack("<QQ", len(text), len(rest)) + text + rest


def unpack(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read the next message. `read(n)` returns exactly n bytes.

    Raises WireError if it is not a message or too large.
    """
    text_size, rest_size = struct.unpack("<QQ", read(16))
    if text_size + rest_size > MAX_BYTES or text_size > MAX_HEAD_BYTES:
        raise WireError(f"a message of {text_size + rest_size} bytes; {MAX_BYTES} are allowed")
    try:
        head = json.loads(read(text_size))
        rest = memoryview(bytearray(read(rest_size)))
        arrays, at = [], 0
        for name, shape in head["arrays"]:
            dtype = np.dtype(name)
            if dtype.kind not in KINDS or any(int(n) < 0 for n in shape):
                raise WireError("arrays of numbers only")
            size = math.prod(shape) * dtype.itemsize
            if at + size > rest_size:
                raise WireError("an array is cut off")
            arrays.append(np.frombuffer(rest[at : at + size], dtype).reshape(shape))
            at += size
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise WireError(f"not a message: {error!s:.200}") from error
    if not isinstance(head, dict):
        raise WireError("not a message")
    return head, arrays
