"""A reader's functions in place of the textbook's: what passes computes, what is wrong is refused with a hint."""

import linecache
import re
from contextlib import nullcontext

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.config import ModelConfig
from tinyprune.errors import install_command
from tinyprune.kernels.backend import get_backend
from tinyprune.method import gates
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer

pytest.importorskip("IPython", reason=f"needs {install_command('notebooks')}")
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tinyprune.course.expectations import Unexpected
from tinyprune.notebook import attempts, yours

RIGHT = """
def layernorm_backward(dout, cache):
    n, std, scale = cache
    dn = dout * scale
    dx = (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True)) / std
    axes = tuple(range(dout.ndim - 1))
    return dx, (dout * n).sum(axes), dout.sum(axes)
"""
GATE = """
def hard_concrete_backward(dout, cache):
    s, inside, temperature, stretch = cache
    return dout * inside * stretch * s * (1 - s) / temperature
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(yours, "FOLDER", tmp_path / "yours")
    monkeypatch.setattr(attempts, "FILE", tmp_path / "attempts.jsonl")
    return tmp_path / "yours"


def written(source):
    """Return the function of a source, as a cell of a notebook defines it."""
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    space = {"np": np}
    exec(compile(source, "<cell>", "exec"), space)
    return next(x for x in space.values() if callable(x) and hasattr(x, "__code__"))


def case():
    rng = np.random.default_rng(0)
    x, scale, bias = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal(4)
    return rng.standard_normal((3, 4)), ops.layernorm_forward(x, scale, bias)[1]


def check(source, hint="three paths"):
    yours.check(written(source), ops.layernorm_backward, case(), hint=hint)


def test_what_passes_trains(folder, capsys):
    check(RIGHT)
    told = capsys.readouterr().out
    assert told.startswith("passed: dx exactly, dscale exactly, dbias ")
    assert told.endswith("Your layernorm_backward computes from here on.\n")
    config = ModelConfig(V=5, L=2, D=8, H=2, N=2, T=4, M=0, mask="causal", positions="learned")
    params = {k: x.astype(float) for k, x in init_parameters(config, np.random.default_rng(0)).items()}
    ids = np.array([[0, 1, 2, 3]])

    def gradients(engine):
        model = Transformer(config, params, ops=engine)
        return model.backward(1.0, model.loss(ids, ids, None, None)[2])

    with yours.engine() as mine:
        got = gradients(mine)
    assert capsys.readouterr().out == "computed by your functions: layernorm_backward (3 times)\n"
    for name, gradient in gradients(get_backend("numpy")).items():
        np.testing.assert_allclose(got[name], gradient, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" - n * (dn * n).mean(-1, keepdims=True)", "", "dx is wrong\ninput     dout"),
        (", dout.sum(axes)", "", "layernorm_backward: not as many results as asked for\ninput     dout"),
        ("dn = dout * scale", "dout *= scale; dn = dout", "changes its input"),
        ("return dx, ", "return dout.sum(axes), dx, ", "expected  3 results: dx, dscale, dbias"),
    ],
)
def test_what_is_wrong_is_refused_with_the_hint_and_not_kept(old, new, message, folder):
    assert RIGHT.count(old) == 1
    with pytest.raises(Unexpected) as error:
        check(RIGHT.replace(old, new))
    assert message in str(error.value) and not folder.exists()
    assert "hint      three paths" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return dx", "return dx.astype(float)", "got       float64\nexpected  float32\nhint      np.float64 numbers"),
        ("return dx, (dout * n).sum(axes)", "return (dout * n).sum(axes), dx", "three paths; or are the results in an"),
    ],
)
def test_another_precision_and_another_order_have_hints_of_their_own(old, new, said):
    assert RIGHT.count(old) == 1
    with pytest.raises(Unexpected) as error:
        check(RIGHT.replace(old, new))
    assert said in str(error.value)


def test_a_notebook_shows_the_four_parts_and_no_line_of_the_package(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.push({"cell": lambda: check(RIGHT.replace("dout.sum(axes)", "dout.sum()"))})
    assert not shell.run_cell("cell()").success
    told = capsys.readouterr().out
    assert told.startswith(
        "Unexpected: layernorm_backward: dbias is wrong\ninput     dout (3, 4)\n          n (3, 4)\n"
    )
    assert "\ngot       shape ()\nexpected  shape (4,)\nhint      three paths\n" in told
    assert "yours.py" not in told


def test_a_function_that_needs_another_cell_is_refused():
    with pytest.raises(NameError, match="layernorm_backward is kept alone"):
        check(RIGHT.replace("dout.sum(axes)", "total(dout, axes)"))


def test_functions_outside_of_the_engine_are_replaced_wherever_they_are_called(capsys):
    out, cache = ops.hard_concrete_forward(np.zeros(3), np.full(3, 0.4), beta=0.5, gamma=-0.1, zeta=1.1, hard=False)
    yours.check(written(GATE), ops.hard_concrete_backward, (np.ones(3), cache), hint="")
    ours = ops.hard_concrete_backward
    with yours.engine():
        assert ops.hard_concrete_backward is not ours
        ops.hard_concrete_backward(np.ones(3), cache)
    assert ops.hard_concrete_backward is ours
    assert "hard_concrete_backward (1 times)" in capsys.readouterr().out


FORWARD = """
def hard_concrete_forward(log_alpha, u, *, beta, gamma, zeta, hard):
    beta = 1.0 if u is None else beta
    noise = 0 if u is None else np.log(u) - np.log(1 - u)
    s = 1 / (1 + np.exp(-(noise + log_alpha) / beta))
    stretched = s * (zeta - gamma) + gamma
    inside = (stretched > 0) & (stretched < 1)
    gate = np.clip(stretched, 0, 1)
    return (gate >= 0.5).astype(gate.dtype) if hard else gate, (s, inside, beta, zeta - gamma)
"""


def check_forward(source, hint="smooth, stretch, clip"):
    log_alpha, u, options = np.array([-3, 0.2, 1]), np.array([0.3, 0.4, 0.9]), {"beta": 0.4, "gamma": -0.2, "zeta": 1.1}
    cases = [(log_alpha, noise, options | {"hard": hard}) for noise in (u, None) for hard in (True, False)]
    yours.check(written(source), ops.hard_concrete_forward, *cases, hint=hint)
    return log_alpha, u, options


def test_keyword_arguments_and_the_parts_of_a_cache_are_compared(capsys):
    log_alpha, u, options = check_forward(FORWARD)
    assert "out exactly, cache[0] to " in capsys.readouterr().out
    with yours.engine():
        ops.hard_concrete_forward(log_alpha, u, **options, hard=True)
        # Complex numbers are left to the package: a gradient check needs them.
        ops.hard_concrete_forward(log_alpha + 0j, u, **options, hard=True)
    assert "hard_concrete_forward (1 times)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("if hard else gate", "if not hard else gate", r"out is wrong\n(.*\n)+.*hard True"),
        ("inside = (stretched > 0)", "inside = (stretched > -1)", r"cache\[1\] is wrong"),
        ("(s, inside, beta, zeta - gamma)", "s, inside, beta, zeta - gamma", "not as many results"),
        (
            "inside, beta, zeta",
            "inside, zeta",
            r"got +2 results, 3 parts in number 2\nexpected +2 results, 4 .*: out, cache\[0\]",
        ),
        ("(s, inside, beta, zeta - gamma)", "(s, stretched, beta, zeta - gamma)", r"beta 0.4\n(.*\n)+got +\S"),
    ],
)
def test_a_forward_with_another_result_or_cache_is_refused(old, new, message):
    assert FORWARD.count(old) == 1
    with pytest.raises(Unexpected, match=message):
        check_forward(FORWARD.replace(old, new))


def test_truth_values_are_no_gates(folder):
    """Later chapters subtract gates, which fails with booleans; the array `inside` of the cache may be of booleans."""
    rounded = ".astype(gate.dtype)"
    assert FORWARD.count(rounded) == 1
    hint = {"": "smooth", "dtype": "a hard gate is a float"}
    with pytest.raises(Unexpected) as error:
        check_forward(FORWARD.replace(rounded, ""), hint)
    assert re.search(r"out is wrong\n(.*\n)+got       bool: .*\nexpected  float64\nhint      a hard", str(error.value))
    assert not folder.exists()
    check_forward(FORWARD, hint)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_attention_of_the_chapter_leaves_other_kinds_to_the_package(backend, capsys):
    q, k, v, r = (x.astype(np.float32) for x in np.random.default_rng(0).standard_normal((4, 1, 3, 2, 4)))
    yours.FOLDER.mkdir()
    (yours.FOLDER / "attention_backward.py").write_text("def attention_backward(dout, cache):\n    return cache.q\n")
    with yours.engine(backend) as mine:
        cache = mine.attention_forward(q, k, v, r[0], np.ones((2, 4), "f"), np.ones((2, 4), "f"))[1]
        assert len(mine.attention_backward(q, cache)) == 9
        cache = mine.attention_forward(q, k, v)[1]  # the textbook's, whatever computes the rest
        np.testing.assert_array_equal(mine.attention_backward(q, cache), q.swapaxes(1, 2))


def test_nothing_kept_says_so(capsys):
    with yours.engine() as mine:
        assert type(mine).__mro__[1] is type(get_backend("numpy"))
    assert "nothing" in capsys.readouterr().out


L0 = """
def l0_backward(dout, cache):
    p, weights = cache
    return dout * p * (1 - p)
"""


def test_a_failure_shows_what_is_in_the_cache_and_the_hint_of_the_result():
    p, weights = np.full((2, 3), 0.3), np.full((2, 3), 2.0)
    with pytest.raises(Unexpected) as error:
        yours.check(written(L0), ops.l0_backward, (0.1, (p, None)), (0.1, (p, weights)), hint={"dlog_alpha": "weights"})
    told = str(error.value)
    assert "dout 0.1\n" in told and "p (2, 3)\n" in told and "weights (2, 3)\n" in told
    assert "hint      weights" in told
    with pytest.raises(Unexpected) as error:
        check(RIGHT.replace("dout.sum(axes)", "dout.sum()"), {"": "paths", "dbias": "all axes but the last"})
    told = str(error.value)
    with pytest.raises(Unexpected, match=r"hint      one; two"):
        check(RIGHT.replace(", dout.sum(axes)", ""), {"dx": "one", "dbias": "two"})
    assert "hint      all axes but the last" in told and re.search(r"\n +n \(3, 4\)\n +std \(3, 1\)\n", told)


def test_results_have_their_names(capsys):
    source = "def controller_step(n, target, heads, lam1, lam2, lr):\n    return lam1, lam1, lam2\n"
    with pytest.raises(Unexpected, match="controller_step: pressure is wrong") as error:
        case = (28.2, 16.0, 32, 0.1, 0.5, 0.02)
        names = ("pressure", "lam1", "lam2")
        yours.check(written(source), gates.controller_step, case, hint={"pressure": "the slope"}, results=names)
    assert "hint      the slope" in str(error.value)


WRONG = RIGHT.replace("dout * n).sum(axes)", "dout).sum(axes)")
STUB = """
def layernorm_backward(dout, cache):
    raise NotImplementedError
"""


def test_attempts_are_kept_if_a_reader_asks_for_it(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(attempts.time, "time", lambda: now[0])

    def attempt(source: str, at: float, error: type[Exception] | None) -> None:
        now[0] = at
        with pytest.raises(error) if error else nullcontext():
            check(source)

    attempt(WRONG, 0, Unexpected)
    assert not attempts.FILE.exists()
    attempts.keep()
    attempt(STUB, 60, NotImplementedError)
    attempt(WRONG, 120, Unexpected)
    attempt(WRONG, 120 + 2 * attempts.BREAK, Unexpected)  # after a break
    attempt(RIGHT, 300 + 2 * attempts.BREAK, None)
    attempt(WRONG, 360 + 2 * attempts.BREAK, Unexpected)  # has passed before
    attempts.stop()
    attempt(RIGHT, 420 + 2 * attempts.BREAK, None)
    lines = attempts.read(attempts.FILE)
    assert [line["exercise"] for line in lines] == ["begin", *4 * ["layernorm_backward"], "end"]
    assert [line["passed"] for line in lines[1:-1]] == [False, False, True, False]
    found = {"layernorm_backward": {"attempts": 3, "minutes": 5.0, "passed": True}}
    assert attempts.per_exercise(lines) == found
    other = attempts.FILE.with_name("other.jsonl")
    rows = [("begin", 0), ("layernorm_backward", 600), ("rmsnorm_backward", 660)]
    other.write_text("".join(f'{{"exercise": "{name}", "at": {at}, "passed": false}}\n' for name, at in rows))
    capsys.readouterr()
    assert attempts.main([str(attempts.FILE), str(other)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[2:] == [["layernorm_backward", "2", "1", "2", "7.5"], ["rmsnorm_backward", "1", "0", "1", "1"]]
    for wrong in ("nothing", '{"exercise": 3}', ""):
        other.write_text(wrong)
        assert attempts.main([str(other)]) == 2
        assert re.match(r"tinyprune: .*other\.jsonl is no log of attempts: .*\n$", capsys.readouterr().err)
