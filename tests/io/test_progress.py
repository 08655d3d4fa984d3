"""Progress bars are drawn only where somebody sees them, and lines appear above them."""

import io
import sys

import pytest

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
