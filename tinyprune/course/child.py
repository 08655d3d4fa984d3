"""The process in which an answer runs: it loads a student's code and calls it when asked.

`tinyprune.course.sandbox` starts it and sends messages (see `wire`), each of which gets a reply:

    {"run": source, "name": …}                          → {"value": null}
    {"has": name}                                       → {"value": whether there is such a function}
    {"call": name, "value": (args, kwargs), "keep": …}  → {"value": result, "changed": arrays that it modified}

or {"raised": kind, message and trace of an error} instead. A call without a name returns its argument. While it runs,
an answer may send {"callback": n, "value": (args, kwargs)} to call a function that it was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import linecache
import os
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from tinyprune.course.wire import Far, decode, encode, pack, unpack

# Packages that contain the answer or compute gradients by themselves.
FORBIDDEN = ("tinyprune", "torch", "jax", "tensorflow", "autograd", "tinygrad", "mlx")


class Child:
    """The answer's side of the wire."""

    def __init__(self, wire: int, first: int) -> None:
        self.wire, self.first, self.process = wire, first, os.getpid()
        # A module like any other: dataclasses, pickle and Numba look for it in sys.modules.
        module = sys.modules["answer"] = ModuleType("answer")
        self.namespace: dict[str, Any] = module.__dict__
        self.kept: list[Any] = []
        self.files: set[str] = set()

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            # A copy of this process that native code has made must not take part.
            part = os.read(self.wire, min(size, 1 << 20)) if os.getpid() == self.process else b""
            if not part:
                os._exit(0)  # the tester is gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def send(self, head: dict[str, Any], value: Any, changed: dict[int, np.ndarray] | None = None) -> None:
        arrays: list[np.ndarray] = []
        head["value"] = encode(value, arrays, self.keep)
        if changed:
            head["changed"] = {i: encode(array, arrays, self.keep) for i, array in changed.items()}
        data = memoryview(pack(head, arrays))
        if os.getpid() != self.process:
            os._exit(0)
        while data:
            data = data[os.write(self.wire, data) :]

    def keep(self, thing: Any) -> int:
        self.kept.append(thing.value if isinstance(thing, Held) else thing)
        return self.first + len(self.kept) - 1

    def decode(self, tree: Any, arrays: list[np.ndarray]) -> Any:
        def mine(number: int) -> Any:
            if number < self.first:
                raise RuntimeError("the answer's process ended, and with it what it kept")
            return self.kept[number - self.first]

        return decode(tree, arrays, lambda number: FarFunction(number, self), mine)

    def serve(self) -> None:
        """Answer messages until the tester is gone."""
        while True:
            head, arrays = unpack(self.read)
            try:
                self.answer(head, arrays)
            except BaseException as error:
                # SystemExit and KeyboardInterrupt too: an answer that tries to exit has failed.
                self.send({"raised": self.describe(error)}, None)

    def answer(self, head: dict[str, Any], arrays: list[np.ndarray]) -> None:
        if "run" in head:
            name = head["name"]
            self.files.add(name)
            lines = head["run"].splitlines(keepends=True)
            linecache.cache[name] = (len(head["run"]), None, lines, name)  # so that a traceback can quote it
            exec(compile(head["run"], name, "exec"), self.namespace)
            self.send({}, None)
        elif "has" in head:
            self.send({}, callable(self.namespace.get(head["has"])))
        else:
            self.call(head, arrays)

    def call(self, head: dict[str, Any], arrays: list[np.ndarray]) -> None:
        function = self.namespace[head["call"]] if head["call"] else lambda value: value
        args, kwargs = self.decode(head["value"], arrays)
        before = [array.copy() for array in arrays]
        result = function(*args, **kwargs)
        if head["keep"] == "all":
            result = Held(result)
        elif head["keep"] == "cache" and isinstance(result, tuple) and len(result) == 2:
            result = (result[0], Held(result[1]))
        pairs = enumerate(zip(before, arrays, strict=True))
        changed = {i: new for i, (old, new) in pairs if old.tobytes() != new.tobytes()}  # NaN is equal to itself
        self.send({}, result, changed)

    def describe(self, error: BaseException) -> dict[str, str]:
        """Describe an error with the lines of the answer that led to it, and no others."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in self.files]
        lines = "".join(traceback.format_list(frames[-6:]))
        if isinstance(error, SyntaxError) and error.filename in self.files:
            lines = f"  {error.filename}, line {error.lineno}\n    {(error.text or '').strip()}\n"
        return {"kind": type(error).__name__, "message": str(error)[:2000], "trace": lines[-4000:]}


class FarFunction(Far):
    """A proxy for a function of the tester."""

    def __init__(self, number: int, child: Child) -> None:
        super().__init__(number)
        self.child = child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.child.send({"callback": self.number}, (args, kwargs))
        head, arrays = unpack(self.child.read)
        if "raised" in head:
            raise RuntimeError(head["raised"])
        return self.child.decode(head["value"], arrays)


class Held:
    """Wraps a value that stays in this process."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Refuser:
    """First in sys.meta_path: refuses imports of packages that contain the answer or compute gradients."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise ImportError with the reason if an answer may not import this module."""
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"an answer may not import {name}: write what the task asks for with NumPy")


def limit(limits: Mapping[str, int], user: int | None) -> None:
    """Have the operating system limit this process for good; for root, become `user` before.

    `limits` are names of limits in the module `resource`, such as RLIMIT_AS → value.
    """
    import resource  # which Windows does not have; answers do not run there

    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG, SIGKILL: an endless loop ends with the marking process, however that ends.
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    for name, value in limits.items():
        number = getattr(resource, name)
        _, most = resource.getrlimit(number)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        # macOS has RLIMIT_AS but refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (value, value))


def main() -> None:
    """Read the settings from the first argument, limit the process, serve."""
    settings = json.loads(sys.argv[1])
    for name in settings["preload"]:
        __import__(name)
    limit(settings["limits"], settings["user"])
    sys.argv = ["answer"]
    sys.meta_path.insert(0, Refuser())
    # From here on they are refused like the rest of the package.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinyprune"]:
        del sys.modules[name]
    child = Child(settings["wire"], settings["first"])
    child.send({}, None)
    child.serve()
