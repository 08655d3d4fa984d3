"""How values travel between the process that tests and the process that runs an answer.

A message is a JSON head and the raw arrays that it speaks of. There is no pickle in it: what comes from the answer's
process is data, whoever wrote it, and can be nothing else. Numbers, texts, arrays, tuples, lists, dicts, generators and
functions can travel; of a function only a number goes over the wire, and calling it sends a message back.

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

KINDS = "biufcSU"  # of arrays: numbers and texts, nothing structured, no objects
PLAIN = (type(None), bool, int, float, str)
MAX_BYTES = 1 << 28
MAX_HEAD_BYTES = 1 << 24  # as Python objects JSON takes up to twenty times its length


class WireError(Exception):
    """A value cannot travel, or what came is no message."""


class Kept:
    """Something that stayed where it was made; handed back, it is that thing again."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<cache {self.number}>"


def encode(value: Any, arrays: list[np.ndarray], keep: Callable[[Any], int], far: type | None = None) -> Any:
    """`value` as a tree that JSON can hold.

    Args:
        value: what travels.
        arrays: gets the arrays in it, not copies.
        keep: gives a number to a function, or to any object that cannot travel, and remembers it.
        far: the class that stands here for what the other side keeps; its objects go back as what they are.

    Raises:
        WireError: if an array in `value` has no fixed size, such as an array of objects.
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
    tree: Any, arrays: list[np.ndarray], function: Callable[[int], Any], kept: Callable[[int], Any] | None = None
) -> Any:
    """The value of `encode`.

    Args:
        function: makes what stands here for a function of the other side.
        kept: gives back what was kept here under a number.

    Raises:
        WireError: if `tree` was not made by `encode`.
    """
    return _decode(tree, dict(enumerate(arrays)), function, kept)


def _decode(
    tree: Any, arrays: dict[int, np.ndarray], function: Callable[[int], Any], kept: Callable[[int], Any] | None
) -> Any:
    if isinstance(tree, PLAIN):
        return tree
    if not isinstance(tree, dict) or len(tree) != 1:
        raise WireError(f"not a message: {tree!r:.80}")
    ((kind, content),) = tree.items()

    def inside(part: Any) -> Any:
        return _decode(part, arrays, function, kept)

    try:
        match kind:
            case "float":
                return float(content)
            case "complex":
                return complex(*map(float, content))
            case "array":
                # each only once: a list that has one large array a thousand times is larger than any memory
                return arrays.pop(content)
            case "scalar":
                return arrays.pop(content)[()]
            case "tuple":
                return tuple(map(inside, content))
            case "list":
                return list(map(inside, content))
            case "dict":
                return {str(k): inside(v) for k, v in content.items()}
            case "generator":
                state = inside(content)
                bits = getattr(np.random, {"PCG64": "PCG64", "PCG64DXSM": "PCG64DXSM"}[state["bit_generator"]])()
                bits.state = state
                return np.random.Generator(bits)
            case "call":
                return function(int(content))
            case "kept":
                return Kept(int(content))
            case "yours" if kept is not None:
                return kept(int(content))
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise WireError(f"not a message: {type(error).__name__}") from error
    raise WireError(f"not a message: {tree!r:.80}")


def pack(head: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """A message as bytes."""
    head = head | {"arrays": [[a.dtype.str, a.shape] for a in arrays]}
    text = json.dumps(head).encode()
    rest = b"".join(a.tobytes() for a in arrays)
    return struct.pack("<QQ", len(text), len(rest)) + text + rest


def unpack(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The next message.

    Args:
        read: gives exactly so many bytes.

    Raises:
        WireError: if what comes is no message or too large.
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
