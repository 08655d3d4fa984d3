"""The process in which an answer runs: it loads a student's code and calls it when asked.

`tinyprune.course.sandbox` starts the text of this file as a program. It imports nothing of this package, which holds
solutions. The two sides send each other values over a socket, as JSON and arrays in NumPy's .npy format, without
pickle: whatever an answer's process sends is data and nothing else. A value that cannot travel, such as a function,
stays on its side, and the other side gets a proxy (`Far`). The tests send one of

    ("run", source, name)                 load a source, which tracebacks call `name`
    ("has", name)                         is there such a function?
    ("call", name, keep, args, kwargs)    call it
    ("keep", value), ("fetch", value)     keep it and return a proxy; return it

and get ("done", result, {number: array that was modified}) or ("raised", kind, message). While it runs, an
answer may send ("callback", number, args, kwargs) to call a function that it was given.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import linecache
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

# Packages that contain the answer or compute gradients by themselves.
FORBIDDEN = ("tinyprune", "torch", "jax", "tensorflow", "autograd", "tinygrad", "mlx")
KINDS = "biufcSU"  # of arrays: numbers and texts; no structures, no objects
MAX_BYTES = 1 << 28  # of a message
MAX_JSON = 1 << 24  # of its JSON, which takes up to twenty times as much as Python objects


@dataclass(frozen=True)
class Far:
    """A proxy for an object that stays where it is; sent back there, it is that object again."""

    owner: str  # "answer" or "tests", the side where it is
    number: int
    function: Callable[..., Any] | None = None  # how an answer calls it, if it is the tests'

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Have the other side call it."""
        return self.function(self.number, args, kwargs)


class Wire:
    """One end of the connection, and the objects that stay there."""

    def __init__(self, stream: BinaryIO, side: str, call: Callable[..., Any] | None = None) -> None:
        """Begin at the "answer" or the "tests", where `call` is how functions of the other side are called."""
        other = {"answer": "tests", "tests": "answer"}[side]
        self.stream, self.side, self.process = stream, side, os.getpid()
        # Two processes of one submission never use the same number, so a proxy from an earlier one is noticed.
        self.numbers, self.kept = itertools.count(time.monotonic_ns()), {}
        self.makers = {side: self.find, other: lambda number: Far(other, number, call)}
        self.makers |= {"tuple": tuple, "dict": dict, "generator": generator}

    def keep(self, thing: Any) -> Far:
        """Keep an object; return its proxy."""
        far = Far(self.side, next(self.numbers))
        self.kept[far.number] = thing
        return far

    def find(self, number: int) -> Any:
        """Return an object that was kept. Raises LookupError if its process has ended."""
        if number not in self.kept:
            raise LookupError("the answer's process ended, and with it what it kept")
        return self.kept[number]

    def send(self, *value: Any) -> list[np.ndarray]:
        """Send a tuple and return the arrays in it, not copies. Raises TypeError for an array of objects.

        A single number of NumPy is an array without axes.
        """
        arrays: list[np.ndarray] = []
        text, message = json.dumps(self.tree(value, arrays)).encode(), io.BytesIO()
        for array in (np.frombuffer(text, np.uint8), *arrays):
            np.lib.format.write_array(message, np.asarray(array, order="C"), allow_pickle=False)
        if os.getpid() != self.process:
            os._exit(0)  # a copy of the process, which the answer made, must not take part
        self.stream.write(message.tell().to_bytes(8, "little") + message.getvalue())
        self.stream.flush()
        return arrays

    def tree(self, value: Any, arrays: list[np.ndarray]) -> Any:
        """Return a value as JSON has it, and append its arrays to `arrays`."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [self.tree(part, arrays) for part in value]
        if type(value) is tuple:
            return {"tuple": [self.tree(part, arrays) for part in value]}
        if type(value) is dict:
            return {"dict": self.tree(list(map(list, value.items())), arrays)}
        if isinstance(value, np.random.Generator):
            return {"generator": self.tree(value.bit_generator.state, arrays)}
        if isinstance(value, np.ndarray | np.generic | complex):
            array = np.asarray(value)
            if array.dtype.kind not in KINDS:
                raise TypeError(f"an array of {array.dtype} cannot be handed over; numbers can")
            arrays.append(array)
            return {"array": len(arrays) - 1}
        if not isinstance(value, Far):
            value = self.keep(value)
        return {value.owner: value.number}

    def receive(self) -> tuple[Any, list[np.ndarray]]:
        """Receive a tuple, and the arrays in it.

        Raises EOFError if the other side is gone. Bytes that `send` did not make lead to an exception of any kind.
        """
        message, arrays = io.BytesIO(self.read(int.from_bytes(self.read(8), "little"))), []
        while message.tell() < len(message.getbuffer()):
            arrays.append(np.lib.format.read_array(message, allow_pickle=False))
        text = arrays.pop(0).tobytes()
        if len(text) > MAX_JSON or any(array.dtype.kind not in KINDS for array in arrays):
            raise ValueError("the message is too long, or has arrays of other things than numbers")
        # Each array only once: a list with one large array a thousand times would fill the memory.
        left = dict(enumerate(arrays))
        makers = {**self.makers, "array": lambda number: left.pop(number)[()]}

        def value(tree: dict[str, Any]) -> Any:
            ((kind, content),) = tree.items()
            return makers[kind](content)

        return json.loads(text, object_hook=value), arrays

    def read(self, size: int) -> bytes:
        """Read so many bytes."""
        if size > MAX_BYTES:
            raise ValueError(f"a message of {size} bytes; {MAX_BYTES} are allowed")
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError
        return data


def generator(state: dict[str, Any]) -> np.random.Generator:
    """Return a random generator in this state."""
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


class Child:
    """What the tests ask for is a method: "run", "has", "call", "keep" or "fetch"."""

    def __init__(self, stream: BinaryIO) -> None:
        self.wire = Wire(stream, "answer", self.call_back)
        self.keep = self.wire.keep
        # A module like any other: dataclasses, pickle and Numba look for it in sys.modules.
        module = sys.modules["answer"] = ModuleType("answer")
        self.namespace: dict[str, Any] = module.__dict__
        self.files: set[str] = set()

    def serve(self) -> None:
        """Do what the tests ask for until they are gone."""
        while True:
            try:
                (request, *details), arrays = self.wire.receive()
                before = [array.copy() for array in arrays]
                result = getattr(self, request)(*details)
                pairs = enumerate(zip(before, arrays, strict=True))
                # Compared as bytes, where NaN is equal to itself.
                self.wire.send("done", result, {i: new for i, (old, new) in pairs if old.tobytes() != new.tobytes()})
            except BaseException as error:
                # SystemExit and KeyboardInterrupt too: an answer that tries to exit has failed.
                message = str(error)[:2000] + self.lines(error)
                self.wire.send("raised", type(error).__name__, message)

    def run(self, source: str, name: str) -> None:
        self.files.add(name)
        # From here a traceback quotes its lines.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.namespace)

    def has(self, name: str) -> bool:
        return callable(self.namespace.get(name))

    def call(self, name: str, keep: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = self.namespace[name](*args, **kwargs)
        if keep == "all":
            return self.keep(result)
        if keep == "cache" and isinstance(result, tuple) and len(result) == 2:
            return result[0], self.keep(result[1])
        return result

    def fetch(self, value: Any) -> Any:
        return value

    def call_back(self, number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Have the tests call one of their functions."""
        self.wire.send("callback", number, args, kwargs)
        (kind, result), _ = self.wire.receive()
        if kind == "raised":
            raise RuntimeError(result)
        return result

    def lines(self, error: BaseException) -> str:
        """Return the lines of the answer that led to an error, and no others, as a part of its message."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in self.files]
        lines = "".join(traceback.format_list(frames[-6:]))
        if isinstance(error, SyntaxError) and error.filename in self.files:
            lines = f"  {error.filename}, line {error.lineno}\n    {(error.text or '').strip()}\n"
        return lines and f"\nin your code:\n{lines[-4000:].rstrip()}"


class Refuser:
    """First in sys.meta_path: refuses imports of packages that contain the answer or compute gradients."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise ImportError with the reason if an answer may not import this module."""
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"an answer may not import {name}: write what the task asks for with NumPy")


def main(wire: int, preload: list[str], user: int | None, limits: dict[str, int]) -> None:
    """Import, have the system limit this process for good, and serve."""
    import resource  # which Windows does not have; answers do not run there

    for name in preload:
        __import__(name)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for name, value in limits.items():
        # macOS refuses to set RLIMIT_AS; a limit of the tester that is lower stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))
    sys.meta_path.insert(0, Refuser())
    child = Child(socket.socket(fileno=wire).makefile("rwb"))
    child.wire.send("ready")
    child.serve()


if __name__ == "__main__":
    main(**json.loads(sys.argv.pop()))
