"""Messages between the process that tests and the process that runs an answer.

A message is a JSON head, followed by arrays in NumPy's .npy format. It contains no pickle, so whatever the answer's
process sends is data and nothing else. Numbers, texts, arrays, tuples, lists, dicts and random generators can travel.
Functions and other objects stay on their side; the other side gets a number for each (`Far`).

    8 bytes  length of the head, little endian        head  {"value": tree, "arrays": how many, …}
    8 bytes  length of the rest                       rest  the arrays, one after the other
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = "biufcSU"  # of arrays: numbers and texts; no structures, no objects
PLAIN = (type(None), bool, int, float, str)
MAX_BYTES = 1 << 28
MAX_HEAD_BYTES = 1 << 24  # JSON takes up to twenty times its length as Python objects


class Far:
    """A proxy for an object that stayed on the other side; sent back, it is that object again."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<object {self.number} of the other process>"


def encode(value: Any, arrays: list[np.ndarray], keep: Callable[[Any], int]) -> Any:
    """Return `value` as a tree for JSON. Raises TypeError for an array of objects.

    Args:
        arrays: receives the arrays in `value`, not copies.
        keep: stores an object that cannot travel and returns its number.
    """
    if isinstance(value, Far):
        return {"yours": value.number}
    if type(value) in PLAIN:
        return value
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in KINDS:
            raise TypeError(f"an array of {value.dtype} cannot be handed over; numbers can")
        arrays.append(np.asarray(value))
        return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
    if type(value) in (tuple, list):
        return {type(value).__name__: [encode(v, arrays, keep) for v in value]}
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode(v, arrays, keep) for k, v in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": encode(value.bit_generator.state, arrays, keep)}
    return {"far": keep(value)}


def decode(tree: Any, arrays: list[np.ndarray], far: Callable[[int], Any], mine: Callable[[int], Any]) -> Any:
    """Return the value that `encode` made `tree` of. What `encode` did not make leads to an exception of any kind.

    Args:
        arrays: of the message.
        far: makes the proxy for object n of the other side.
        mine: returns object n that was kept on this side.
    """
    left = dict(enumerate(arrays))

    def value(tree: Any) -> Any:
        if isinstance(tree, PLAIN):
            return tree
        ((kind, content),) = tree.items()
        match kind:
            case "complex":
                return complex(*content)
            case "array":
                # Each only once: a list with one large array a thousand times would fill the memory.
                return left.pop(content)
            case "scalar":
                return left.pop(content)[()]
            case "tuple" | "list":
                found = [value(part) for part in content]
                return found if kind == "list" else tuple(found)
            case "dict":
                return {k: value(v) for k, v in content.items()}
            case "generator":
                state = value(content)
                bits = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}[state["bit_generator"]]()
                bits.state = state
                return np.random.Generator(bits)
            case "far":
                return far(int(content))
            case "yours":
                return mine(int(content))
        raise ValueError(f"no value is called {kind!r:.80}")

    return value(tree)


def pack(head: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """Return a message as bytes."""
    text, rest = json.dumps(head | {"arrays": len(arrays)}).encode(), io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(rest, np.asarray(array, order="C"), allow_pickle=False)
    return struct.pack("<QQ", len(text), rest.tell()) + text + rest.getvalue()


def unpack(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read the next message. `read(n)` returns exactly n bytes.

    Raises ValueError if it is too large; bytes that are no message lead to an exception of any kind.
    """
    text_size, rest_size = struct.unpack("<QQ", read(16))
    if text_size + rest_size > MAX_BYTES or text_size > MAX_HEAD_BYTES:
        raise ValueError(f"a message of {text_size + rest_size} bytes; {MAX_BYTES} are allowed")
    text, rest = read(text_size), io.BytesIO(read(rest_size))
    head = json.loads(text)
    arrays = [np.lib.format.read_array(rest, allow_pickle=False) for _ in range(head["arrays"])]
    if any(array.dtype.kind not in KINDS for array in arrays):
        raise ValueError("arrays of numbers only")
    return head, arrays
