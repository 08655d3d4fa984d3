"""Run an assignment's tests with pytest: without Jupyter, for Gradescope, and on a student's own machine.

    pytest a2 -m a2_3                                          one task
    pytest a2 --in-process                                     in this process, for a debugger
    pytest a2 --submission=her.py --results=results.json       marks, in Gradescope's format

The pytest.ini beside the tests loads this plugin. Answers run in a separate process, as they do where they are marked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tinyprune.course.answers import _submission
from tinyprune.course.isolation import warning
from tinyprune.course.sandbox import AnswerError, Sandbox
from tinyprune.io.files import replace_file


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the three options above."""
    group = parser.getgroup("course")
    group.addoption("--submission", metavar="FILE", help="the answers; by default a1.py in the folder a1, and so on")
    group.addoption("--in-process", action="store_true", help="run answers in this process, unprotected")
    group.addoption("--results", metavar="FILE", help="write marks in Gradescope's format")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and start marking."""
    config.addinivalue_line("markers", "points(n): points of a test")
    config.addinivalue_line("markers", "hidden: a test that is not released")
    config.pluginmanager.register(Marking(config), "tinyprune-marking")


class Marking:
    """One submission and its marks."""

    def __init__(self, config: pytest.Config) -> None:
        folder = config.rootpath
        self.config = config
        self.file = Path(config.getoption("submission") or folder / f"{folder.name}.py")
        # The separate process does not exist on Windows.
        self.in_process = config.getoption("in_process") or os.name == "nt"
        self.sandbox = Sandbox()
        self.problem: str | None = None
        self.loaded = False
        self.started = time.perf_counter()
        self.items: dict[str, dict[str, Any]] = {}
        # From here on, because modules of tests configure the sandbox while they are collected.
        self.token = _submission.set(None if self.in_process else self.sandbox)

    def load(self) -> None:
        """Run the file of answers."""
        self.loaded = True
        try:
            if self.file.is_symlink():
                raise OSError("it is a link, which could lead to a solution")
            source = self.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problem = f"{self.file} cannot be read: {error}"
            return
        # If it ends with an error, only what it defines above the error exists.
        try:
            if self.in_process:
                run_here(self.file)
            else:
                self.sandbox.run(source, self.file.name)
        except Exception as error:
            if not (self.in_process or isinstance(error, AnswerError)):
                raise
            self.problem = f"{self.file.name} ends with an error: {message_of(error, self.file)}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Load the answers before the first test; if that failed, failing tests say why."""
        if not self.loaded:
            self.load()
        try:
            return (yield)
        except Exception as error:
            if self.problem:
                error.add_note(self.problem)
            raise

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """List all tests as failed until they have passed."""
        for item in session.items:
            points = sum(sum(marker.args) for marker in item.iter_markers("points"))
            hidden = item.get_closest_marker("hidden") is not None
            self.items[item.nodeid] = {"points": points, "hidden": hidden, "message": "", "passed": False}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
        """Record a test's outcome, and the message of one that fails without the lines of the test."""
        report, entry = (yield), self.items[item.nodeid]
        if call.excinfo is not None:
            entry["message"] = message_of(call.excinfo.value, self.file)
        if call.when == "call":
            entry["passed"] = report.passed
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End the answers' process and write the marks."""
        self.sandbox.close()
        _submission.reset(self.token)
        results = self.config.getoption("results")
        if results:
            replace_file(Path(results), json.dumps(self.results(), indent=2).encode())

    def results(self) -> dict[str, Any]:
        """Return the marks in the format of https://gradescope-autograders.readthedocs.io/en/latest/specs/."""
        tests = [
            {
                "name": label(nodeid),
                "score": entry["points"] if entry["passed"] else 0,
                "max_score": entry["points"],
                "status": "passed" if entry["passed"] else "failed",
                "output": entry["message"],
                "visibility": "after_published" if entry["hidden"] else "visible",
            }
            for nodeid, entry in self.items.items()
        ]
        return {
            "score": sum(t["score"] for t in tests),
            "execution_time": round(time.perf_counter() - self.started, 3),
            "output": self.problem or "",
            "tests": tests,
        }

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print messages and points, and whether hidden tests remain."""
        for nodeid, entry in self.items.items():
            if entry["message"]:
                terminalreporter.section(label(nodeid), "-", red=True)
                terminalreporter.write_line(entry["message"])
        passed = sum(entry["points"] for entry in self.items.values() if entry["passed"])
        total = sum(entry["points"] for entry in self.items.values())
        if self.problem:
            terminalreporter.write_line(self.problem, red=True)
        # Who marks must know; a student's answers are the student's.
        if self.config.getoption("results") and not self.in_process and warning():
            terminalreporter.write_line(warning(), yellow=True)
        terminalreporter.write_line(f"{passed:g} of {total:g} points of the tests that ran.")
        if not any(entry["hidden"] for entry in self.items.values()):
            terminalreporter.write_line(
                "These are the visible tests only. Hidden tests, which run after you hand in, remain: "
                "they call the same functions with other shapes and values."
            )


def label(nodeid: str) -> str:
    """Return a test's name without its file and `test_`."""
    return nodeid.rpartition("::")[2].removeprefix("test_")


def run_here(file: Path) -> None:
    """Run the answers as a module of this process, in which tests then look for them."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    _submission.set(module)
    spec.loader.exec_module(module)


def message_of(error: BaseException, file: Path) -> str:
    """Return an error's message, the lines of `file` that raised it (if it ran in this process), and its notes."""
    kind = "" if isinstance(error, AssertionError | AnswerError) else f"{type(error).__name__}: "
    said = f"{kind}{error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file.absolute())]
    if frames:
        said += "\nin your code:\n" + "".join(traceback.format_list(frames[-6:])).rstrip()
    said = "\n".join([said, *getattr(error, "__notes__", ())])
    # An answer's message may contain half a surrogate, which cannot be printed.
    return said.encode(errors="replace").decode()
