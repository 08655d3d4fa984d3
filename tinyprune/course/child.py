"""The process in which an answer runs: it loads a student's code and calls it when asked.

`tinyprune.course.sandbox` starts it, sends messages (see `wire`) through one pipe and receives replies through another:

    {"run": source, "name": …}                          → {"done", "value": null}
    {"has": name}                                       → {"done", "value": whether there is such a function}
    {"call": name, "value": (args, kwargs), "keep": …}  → {"done", "value": result, "changed": arrays that it modified}
    {"hold", "value": x}                                → {"done", "value": x, which stays here}
    {"fetch", "value": x that stayed here}              → {"done", "value": x}

or {"raised": kind, message and trace of an error} instead. While it runs, an answer may send
{"callback": n, "value": (args, kwargs)} to call a function that it was given.
"""

from __future__ import annotations

import errno
import json
import linecache
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tinyprune.course import lockdown
from tinyprune.course.wire import Kept, WireError, decode, encode, pack, unpack


class Child:
    """The answer's side of the wire."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = os.fdopen(incoming, "rb"), outgoing
        # A module like any other: dataclasses, pickle and Numba look for it in sys.modules.
        module = sys.modules["answer"] = ModuleType("answer")
        self.namespace: dict[str, Any] = module.__dict__
        self.kept: list[Any] = []
        self.files: set[str] = set()

    def read(self, size: int) -> bytes:
        data = self.incoming.read(size)
        if len(data) < size:
            os._exit(0)  # the tester is gone
        return data

    def send(self, head: dict[str, Any], value: Any, changed: dict[int, np.ndarray] | None = None) -> None:
        arrays: list[np.ndarray] = []
        head["value"] = encode(value, arrays, self.keep, Kept)
        if changed:
            head["changed"] = {i: encode(array, arrays, self.keep) for i, array in changed.items()}
        data = memoryview(pack(head, arrays))
        while data:
            data = data[os.write(self.outgoing, data) :]

    def keep(self, thing: Any) -> int:
        self.kept.append(thing)
        return len(self.kept) - 1

    def function(self, number: int) -> Any:
        """Return the stand-in for function `number` of the tester."""

        def callback(*args: Any, **kwargs: Any) -> Any:
            self.send({"callback": number}, (args, kwargs))
            head, arrays = unpack(self.read)
            if "raised" in head:
                raise RuntimeError(head["raised"]["message"])
            return self.decode(head["value"], arrays)

        return callback

    def decode(self, tree: Any, arrays: list[np.ndarray]) -> Any:
        def mine(number: int) -> Any:
            thing = self.kept[number]
            return thing.value if isinstance(thing, Held) else thing

        return decode(tree, arrays, self.function, mine)

    def serve(self) -> None:
        """Answer messages until the tester is gone."""
        while True:
            head, arrays = unpack(self.read)
            try:
                self.answer(head, arrays)
            except WireError as error:
                self.send({"raised": {"kind": "TypeError", "message": str(error), "trace": ""}}, None)
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
            self.send({"done": True}, None)
        elif "has" in head:
            self.send({"done": True}, callable(self.namespace.get(head["has"])))
        elif "hold" in head:
            self.send({"done": True}, Held(self.decode(head["value"], arrays)))
        elif "fetch" in head:
            self.send({"done": True}, self.decode(head["value"], arrays))
        else:
            self.call(head, arrays)

    def call(self, head: dict[str, Any], arrays: list[np.ndarray]) -> None:
        function = self.namespace[head["call"]]
        args, kwargs = self.decode(head["value"], arrays)
        before = [array.copy() for array in arrays]
        result = function(*args, **kwargs)
        if head["keep"] == "all":
            result = Held(result)
        elif head["keep"] == "cache" and isinstance(result, tuple) and len(result) == 2:
            result = (result[0], Held(result[1]))
        pairs = enumerate(zip(before, arrays, strict=True))
        changed = {i: new for i, (old, new) in pairs if old.tobytes() != new.tobytes()}  # NaN is equal to itself
        self.send({"done": True}, result, changed)

    def describe(self, error: BaseException) -> dict[str, str]:
        """Describe an error with the lines of the answer that led to it, and no others."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in self.files]
        lines = "".join(traceback.format_list(frames[-6:]))
        if isinstance(error, SyntaxError) and error.filename in self.files:
            lines = f"  {error.filename}, line {error.lineno}\n    {(error.text or '').strip()}\n"
        message = str(error)[:2000]
        if isinstance(error, OSError) and error.errno == errno.EPERM:
            # The kernel's answer to a system call that is not on lockdown's list gives no reason.
            message += " (an answer may compute, start threads, and use files in its own directory)"
        return {"kind": type(error).__name__, "message": message, "trace": lines[-4000:]}


class Held:
    """Wraps a value that stays in this process."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<held>"


def main() -> None:
    """Read the settings from the first argument, lock the process, serve."""
    settings = json.loads(sys.argv[1])
    scratch = Path(settings["scratch"])
    for name in settings["preload"]:
        __import__(name)
    lockdown.limit_resources(settings["memory_bytes"], settings["cpu_seconds"], settings["file_bytes"])
    child = Child(settings["incoming"], settings["outgoing"])
    sys.argv = ["answer"]
    package = Path(__file__).parents[1]
    filters = lockdown.refuse_in_the_kernel(scratch, [package, Path(settings["hidden"])])
    lockdown.refuse_in_python(scratch, package)
    # From here on they are refused like the rest of the package.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinyprune"]:
        del sys.modules[name]
    child.send({"ready": filters}, None)
    child.serve()


if __name__ == "__main__":
    main()
