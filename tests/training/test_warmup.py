"""The first steps: what the user is told while kernels are compiled, and measurements that change nothing."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from command import MODEL, write_text
from small import backend_with, small_config, small_model

from tinyprune import ops
from tinyprune.config import GateConfig, RunConfig, TrainConfig
from tinyprune.data import Segments
from tinyprune.method.gates import GateObjective
from tinyprune.ops.engine import Engine
from tinyprune.runs import report
from tinyprune.runs import run as running
from tinyprune.runs.directory import STAGES, RunDirectory
from tinyprune.runs.run import Run
from tinyprune.training import warmup
from tinyprune.training.evaluation import evaluate
from tinyprune.training.warmup import announced, rehearse

FIRST = "tinyprune: train: compiling kernels, at every start\n"
LAST = "tinyprune: train: compiled 3 functions in 40 s; nothing keeps them\n"


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("tinyprune.training.warmup.time", clock)
    return clock


class Compiler:
    """Makes a backend whose kernels `compile` pretends to compile."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock
        self.begin = self.end = lambda *name: None  # until somebody listens
        text = {"compiling": "compiling kernels, at every start", "compiled": "nothing keeps them"}
        self.backend = backend_with(compilations=self.compilations, functions_to_compile=lambda: 5, **text)

    @contextmanager
    def compilations(self, begin, end):
        self.begin, self.end = begin, end
        yield

    def compile(self, name, seconds, *inner):
        """Pretend to compile a function for some seconds, and meanwhile those that it calls."""
        self.begin(name)
        for called in inner:
            self.compile(called, 0)
        self.clock.now += seconds
        self.end()


@pytest.mark.parametrize(("terminal", "run"), [(False, True), (True, False), (True, True)])
def test_says_when_it_begins_and_in_the_end_how_many_and_how_long(terminal, run, clock, capsys, monkeypatch):
    """A terminal shows meanwhile what is being compiled: 40 s; other things take 100 s. Else nothing is said."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    compiler = Compiler(clock)
    with announced(compiler.backend, "train"), announced(Engine(), "train", run=True):
        clock.now += 100
    assert capsys.readouterr().err == ""
    with announced(compiler.backend, "train", run=run):
        compiler.compile("forward", 10, "inner")
        clock.now += 100
        compiler.compile("backward", 30)
    shown = capsys.readouterr().err
    assert shown.startswith(FIRST) and shown.endswith(LAST)
    of = " of about 5" * run
    now = [f"compiled 0{of} functions, now inner", f"compiled 2{of} functions, now backward"]
    assert all(line in shown for line in now) if terminal else shown == FIRST + LAST


def test_a_rehearsal_tells_the_time_and_changes_nothing(clock, monkeypatch):
    """A step takes 2 s here and reading a token 10 ms, the first time of each ten times as long."""
    gate = GateConfig(controller_lr=0.5)
    model = small_model(small_config(), gate, dtype=np.float32)
    objective = GateObjective(gate, 0, 6, target=2)
    before, state = {name: x.copy() for name, x in model.params.items()}, objective.state()
    segments = Segments(np.random.default_rng(1).integers(0, 11, 70), 2, 5)
    made: list = []

    def slowly(name, seconds):
        function = getattr(warmup, name)

        def slow(*arguments):
            clock.now += seconds(*arguments) * (1 if name in made else 10)
            made.append(name)
            return function(*arguments)

        monkeypatch.setattr(warmup, name, slow)

    slowly("train_step", lambda training: 2.0)
    slowly("evaluate", lambda model, tokens, batch: 0.01 * len(tokens))
    config = TrainConfig(B=2, steps=10_000, evaluate_every=500)
    given = segments, SimpleNamespace(valid=np.zeros(50, int)), config
    for done, evaluations in ((0, 20), (9_900, 1)):
        seconds = rehearse(model, objective, *given, done)
        assert seconds == pytest.approx(2.0 * (10_000 - done) + 0.5 * evaluations)
    assert all(np.array_equal(model.params[name], x) for name, x in before.items())
    np.testing.assert_array_equal(objective.state()["lam"], state["lam"])


def recording(calls: set) -> Engine:
    """The textbook, noting what distinguishes compiled code: operations, and the types of the arrays they are given."""

    def recorded(name):
        operation = getattr(ops, name)

        def call(*arguments, **options):
            arrays = [x for x in arguments if isinstance(x, np.ndarray)]
            calls.add((name, *((x.dtype.str, x.ndim, x.flags.carray) for x in arrays)))
            return operation(*arguments, **options)

        return call

    names = (name for name in ops.__all__ if name[0].islower())
    return backend_with(**{name: recorded(name) for name in names})


@pytest.mark.parametrize(
    "gate", [{"lam": 0.1}, {"target_heads": 0}, {"target_heads": 3}, {"hard": False, "lam": 0.5}], ids=str
)
@pytest.mark.parametrize("at_once", [True, False])
def test_all_that_a_run_calls_is_called_at_its_start(gate, at_once, tmp_path, monkeypatch):
    """All stages by one command, or the first by one that has to compile something, and then the others."""
    calls: set = set()
    stage = {"steps": 3, "B": 2, "evaluate_every": 2}
    tables = {"model": MODEL, "gate": gate, "data": {"corpus": str(write_text(tmp_path))}}
    config = RunConfig.from_dict(tables | dict.fromkeys(("train", "gate_train", "heal"), stage))
    run = Run(RunDirectory(tmp_path / "run"), config, recording(calls), "")
    run.prepare(STAGES)
    if at_once:
        run.announce()
    else:

        @contextmanager
        def compiling(ops, stage, run):
            yield [stage] * (stage == "train")

        monkeypatch.setattr(running, "announced", compiling)
        run.train()
    at_start = set(calls)
    calls.clear()
    for stage in STAGES if at_once else STAGES[1:]:
        getattr(run, stage)()
    models = [run.load(stage).model for stage in STAGES]
    report.milliseconds_per_1k_tokens(models, run.text.valid, at_least=0)
    report.stage_record("gate", models[1], evaluate(models[1], run.text.test, 0), 1.0)
    report.sample_text(run, models[-1])
    assert calls and not calls - at_start
