"""Progress bars are drawn only where somebody sees them, and lines appear above them."""

import io
import os
import sys

import pytest

from tinyprune.io import progress
from tinyprune.io.progress import progress_bar, say, silent


def stream(module, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    Stream.__module__ = module
    return Stream()


@pytest.mark.parametrize(
    ("module", "terminal", "expected"), [("io", True, False), ("io", False, True), ("ipykernel.iostream", False, False)]
)
def test_silent_unless_seen(monkeypatch, module, terminal, expected):
    monkeypatch.setattr(sys, "stderr", stream(module, terminal))
    assert silent() is expected


@pytest.mark.parametrize("module", ["io", "ipykernel.iostream"])
def test_a_line_stands_above_the_bar(monkeypatch, module):
    shown = stream(module, True)
    monkeypatch.setattr(sys, "stderr", shown)
    with progress_bar(total=2, desc="train") as bar:
        bar.update()
        say("half of it")
    lines = [line.split("\r")[-1] for line in shown.getvalue().split("\n")]
    assert lines[0] == "tinyprune: half of it" and lines[1].startswith("train: ")
    assert lines[2:] == [""]


def test_a_busy_machine_is_said_where_a_time_is_announced(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, said in (
        (2.4, "about 30 s"),
        (4.9, "about 30 s while the machine is as busy as now (4.9 programs on 2 processors)"),
    ):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert progress.expected(30) == said
    monkeypatch.delattr(os, "getloadavg")
    assert progress.expected(30) == "about 30 s"
