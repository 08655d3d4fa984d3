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
def test_an_exercise_is_kept_without_its_error_and_sliders_without_their_widget(failing):
    """So that a page shows pictures where no kernel runs, JupyterLab's own included."""
    pytest.importorskip("ipywidgets")
    slid = (
        "import matplotlib.pyplot as plt\nfrom tinyprune.notebook import sliders\n\ndef draw(n):\n    'Draw a line.'\n"
    )
    slid += "    print('at', n)\n    plt.plot([0, n])\n\nsliders(draw, n=(0, 4))"
    failing.write_text(
        f'# %% tags=["exercise", "raises-exception"]\nprint(1)\n1 / 0\n\n# %%\n{slid}\n', encoding="utf-8"
    )
    notebook = execute.run(failing)
    exercise, slider = notebook.cells
    assert [output.output_type for output in exercise.outputs] == ["stream"]
    assert {*slider.outputs[0].data} == {"text/plain", "text/html"}
    assert "Draw a line. n = 4" in slider.outputs[0].data["text/html"]
    target = execute.write(notebook, failing)
    assert target.name == "03_wrong.ipynb" and "data-frames" in target.read_text("utf-8")


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
