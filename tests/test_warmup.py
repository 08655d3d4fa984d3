"""What the user sees while kernels are compiled."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

from tinyprune.kernels.backend import Backend
from tinyprune.kernels.cpu.jit import COMPILING
from tinyprune.warmup import announced

SAID = "tinyprune: compiling kernels, once on this machine: about half a minute\n"


@contextmanager
def compilations(tell):
    tell("forward")
    yield
    tell("backward")


def test_says_so_once(capsys):
    with announced(SimpleNamespace(compilations=compilations, compiling=COMPILING)):
        pass
    assert capsys.readouterr().err == SAID


def test_counts_functions_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with announced(SimpleNamespace(compilations=compilations, compiling=COMPILING)):
        pass
    shown = capsys.readouterr().err
    assert shown.startswith(SAID)
    assert "0 functions in 00:00" in shown


def test_silent_when_nothing_is_compiled(capsys):
    @contextmanager
    def nothing(tell):
        yield

    for ops in (SimpleNamespace(compilations=nothing), Backend()):
        with announced(ops):
            pass
    assert capsys.readouterr().err == ""
