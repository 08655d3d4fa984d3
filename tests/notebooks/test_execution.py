"""Every notebook runs from top to bottom; an error in one names its place."""

import math

import jupytext
import pytest
from folder import FOLDER, NAMES, executor

from tinyprune.errors import install_command
from tinyprune.kernels.gpu import what_is_missing

pytest.importorskip("nbclient", reason=f"needs {install_command('notebooks')}")
pytest.importorskip("ipykernel", reason=f"needs {install_command('notebooks')}")
execute = executor()


# Chapters that train do so here for fewer steps or on less text: their lines, and what becomes of them. What one reads
# is made by `notebooks/execute.py`, which changes nothing. The longest first: then two workers end at the same time.
FEWER = {
    "00_tour": {
        "first_run.config,": "first_run.config.with_options({'gate_train.steps': 200, 'gate.lr_multiplier': 25.0,"
        " 'heal.steps': 60}),"
    },
    "09_a_real_language_model": {
        "text.test[:2049], text.valid[:2049]": "text.test[:1025], text.valid[:1025]",
        "in (27, 54, 81):": "in (27, 54):",
        'load_preset("pretrained")': "load_preset('pretrained').with_options({'gate_train.steps': 10})",
        "text.train[:6144]": "text.train[:2048]",
    },
    "06_training_with_gates": {
        "STEPS, RATE = 2000, 10.0": "STEPS, RATE = 300, 66.0",
        '"gate_train.steps": 120': '"gate_train.steps": 60',
    },
    "08_fine_tuning_and_trade_off": {"GATE, FINE = 60, 90": "GATE, FINE = 30, 30"},
}
ORDER = [FOLDER / f"{name}.py" for name in dict.fromkeys([*FEWER, *reversed(NAMES)])]


@pytest.mark.notebook
@pytest.mark.parametrize("source", ORDER, ids=lambda source: source.stem)
def test_notebook_runs(source, tmp_path):
    if source.stem == "11c_on_a_gpu" and (missing := what_is_missing()):
        pytest.skip(missing)
    text = source.read_text("utf-8")
    for written, fewer in FEWER.get(source.stem, {}).items():
        assert text.count(written) == 1, f"{written} must be in {source.name} once"
        text = text.replace(written, fewer)
    (tmp_path / source.name).write_text(text, "utf-8")
    notebook = execute.run(tmp_path / source.name)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())


@pytest.fixture
def failing(tmp_path):
    source = tmp_path / "03_wrong.py"
    cells = ["[markdown]\n# # Title", "\nprint('fine')", "[markdown]\n# ## The bad part", "\nx = 1\n1 / 0"]
    source.write_text("\n\n".join(f"# %% {cell}" for cell in cells), "utf-8")
    return source


@pytest.mark.slow
def test_failure_names_notebook_cell_and_heading(failing):
    with pytest.raises(execute.NotebookError) as error:
        execute.run(failing)
    message = str(error.value)
    assert message.startswith("03_wrong.py, cell 3, under “The bad part”:\nx = 1\n1 / 0\n")
    assert "ZeroDivisionError" in message


@pytest.mark.slow
def test_a_cell_that_never_ends_is_named(failing, monkeypatch):
    monkeypatch.setattr(execute, "SECONDS", 2)
    failing.write_text("# %%\nimport time\n\n# %%\ntime.sleep(60)\n", "utf-8")
    with pytest.raises(execute.NotebookError, match=r"03_wrong\.py, cell 1, under “the beginning”:\ntime\.sleep"):
        execute.run(failing)


@pytest.mark.slow
def test_sliders_are_kept_without_their_widget(failing):
    """So that a page shows pictures where no kernel runs, JupyterLab's own included."""
    pytest.importorskip("ipywidgets")
    slid = (
        "import matplotlib.pyplot as plt\nfrom tinyprune.notebook import sliders\n\ndef draw(n):\n    'Draw a line.'\n"
    )
    slid += "    print('at', n)\n    plt.plot([0, n])\n\nsliders(draw, n=(0, 4))"
    failing.write_text(f"# %%\n{slid}\n", encoding="utf-8")
    notebook = execute.run(failing)
    (slider,) = notebook.cells
    assert {*slider.outputs[0].data} == {"text/plain", "text/html"}
    assert "Draw a line. n = 4" in slider.outputs[0].data["text/html"]
    target = execute.write(notebook, failing)
    assert target.name == "03_wrong.ipynb" and "data-frames" in target.read_text("utf-8")


STUB = """def l0_backward(dout, cache):
    p, weights = cache
    raise NotImplementedError("write l0_backward: return the gradient")

yours.check(l0_backward, ops.l0_backward, (1.0, (np.array([0.3, 0.6]), None)), hint="")"""
ANSWER = """def l0_backward(dout, cache):
    p, weights = cache
    return dout * p * (1 - p) * (1 if weights is None else weights)"""
FOLDED = """# %% [markdown]
# <details><summary>Compare with ours</summary>
#
# ```python
# {}
# ```
#
# </details>"""
USES = """import numpy as np
from tinyprune import ops
from tinyprune.notebook import yours
with yours.engine():
    ops.l0_backward(1.0, (np.array([0.3]), None))"""


def exercise(answer):
    """Return the cells of an exercise, before and after which the function computes."""
    folded = FOLDED.format(answer.replace("\n", "\n# "))
    tagged = '# %% tags=["exercise", "raises-exception"]'
    return f"# %%\n{USES}\n\n{tagged}\n{STUB}\n\n{folded}\n\n# %%\n{USES}\n"


@pytest.mark.slow
def test_reference_answers_compute_and_stubs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    monkeypatch.setenv("TINYPRUNE_YOURS", str(tmp_path / "mine"))  # the author's own, which are left alone
    for name in ("04_first", "05_next"):
        (tmp_path / f"{name}.py").write_text(exercise(ANSWER), "utf-8")
    counts = []
    for name in ("04_first", "05_next"):
        before, stub, _, after = execute.run(tmp_path / f"{name}.py").cells
        assert stub.source == STUB and stub.metadata.tags == ["exercise", "raises-exception"]
        assert stub.outputs[0].text.startswith("passed: ") and "reference answer" in stub.outputs[1].data["text/plain"]
        counts += [cell.outputs[0].text.count("l0_backward (1 times)") for cell in (before, after)]
        assert "reference answers" in after.outputs[1].data["text/markdown"]
    assert counts == [0, 1, 1, 1] and not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_an_answer_that_fails_or_is_missing_is_named(failing):
    for answer, message in (
        (ANSWER.replace("(1 - p)", "(2 - p)"), "dlog_alpha is wrong"),
        (ANSWER.replace("l0_backward", "l0_forward"), "has not every stub's function"),
    ):
        failing.write_text(exercise(answer), "utf-8")
        with pytest.raises(execute.NotebookError, match=message):
            execute.run(failing)
    failing.write_text(exercise(ANSWER).replace("Compare with ours", "Hint"), "utf-8")
    with pytest.raises(execute.NotebookError, match=r"cell 1, under “the beginning”, is an exercise without"):
        execute.run(failing)


def test_a_notebook_that_ran_on_a_busy_machine_is_not_kept(tmp_path, monkeypatch):
    table = "| [a](01_a.ipynb) | 25 min | 30 min | 3 s | x |\n| [b](02_b.ipynb) | 5 min | 9 min | 1 min (trains) |\n"
    (tmp_path / "README.md").write_text(table)
    (tmp_path / "01_a.py").write_text("# %%\n1\n")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    assert [execute.announced(tmp_path / f"{name}.py") for name in ("01_a", "02_b", "03_c")] == [3, 60, math.inf]
    monkeypatch.setattr(execute, "run", lambda source: jupytext.read(source))
    clock = iter((0, 22, 0, 20, 0, 99))
    monkeypatch.setattr(execute.time, "perf_counter", lambda: next(clock))
    with pytest.raises(execute.NotebookError, match=r"took 22 s, and README\.md says 3 s"):
        execute.main(["01"])
    assert not (tmp_path / "01_a.ipynb").exists()
    execute.main(["01"])
    (tmp_path / "01_a.ipynb").unlink()
    execute.main(["01"], slow=True)
    assert (tmp_path / "01_a.ipynb").exists()
