"""The first steps: what the user is told while kernels are compiled, and a measurement that changes nothing."""

import sys
from contextlib import contextmanager

import numpy as np
from small import backend_with, small_config, small_model

from tinyprune.config import TrainConfig
from tinyprune.data import Segments
from tinyprune.kernels.backend import Backend
from tinyprune.kernels.cpu.jit import COMPILING
from tinyprune.warmup import announced, measure_seconds

SAID = "tinyprune: compiling kernels, once on this machine: about half a minute\n"


def compile_two() -> None:
    """Pretend to compile two kernels."""

    @contextmanager
    def compilations(tell):
        tell("forward")
        yield
        tell("backward")

    with announced(backend_with(compilations=compilations, compiling=COMPILING)):
        pass


def test_says_so_once(capsys):
    compile_two()
    assert capsys.readouterr().err == SAID


def test_counts_functions_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    compile_two()
    shown = capsys.readouterr().err
    assert shown.startswith(SAID) and "0 functions in 00:00" in shown


def test_silent_when_nothing_is_compiled(capsys):
    with announced(Backend()):
        pass
    assert capsys.readouterr().err == ""


def test_measuring_times_a_step_and_a_look_and_changes_nothing():
    class Text:
        valid = np.zeros(50)

    model = small_model(small_config(), dtype=np.float32)
    before = {name: x.copy() for name, x in model.params.items()}
    segments = Segments(np.random.default_rng(1).integers(0, 11, 70), 2, 5)
    step, look = measure_seconds(model, segments, Text(), TrainConfig(B=2))
    assert 0 < step < 10 and 0 < look < 100
    assert all(np.array_equal(model.params[name], x) for name, x in before.items())
