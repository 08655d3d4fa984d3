"""Every notebook runs from top to bottom; an error in one names its place."""

import pytest
from folder import NAMES, SOURCES, executor

from tinyprune.errors import install_command
from tinyprune.kernels.gpu import what_is_missing

pytest.importorskip("nbclient", reason=f"needs {install_command('notebooks')}")
pytest.importorskip("ipykernel", reason=f"needs {install_command('notebooks')}")
execute = executor()


@pytest.mark.notebook
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebook_runs(source):
    if source.stem == "10_on_a_gpu" and (missing := what_is_missing()):
        pytest.skip(missing)
    notebook = execute.run(source)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())


@pytest.fixture
def failing(tmp_path):
    source = tmp_path / "03_wrong.py"
    cells = ["[markdown]\n# # Title", "\nprint('fine')", "[markdown]\n# ## The bad part", "\nx = 1\n1 / 0"]
    source.write_text("\n\n".join(f"# %% {cell}" for cell in cells), encoding="utf-8")
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
    failing.write_text("# %%\nimport time\n\n# %%\ntime.sleep(60)\n", encoding="utf-8")
    with pytest.raises(execute.NotebookError, match=r"03_wrong\.py, cell 1, under “the beginning”:\ntime\.sleep"):
        execute.run(failing)


@pytest.mark.slow
def test_an_exercise_is_kept_without_its_error_and_sliders_without_their_widget(failing):
    """So that a page shows pictures where no kernel runs, JupyterLab's own included."""
    pytest.importorskip("ipywidgets")
    slid = "from tinyprune.notebook import sliders\n\nsliders(lambda n: print('at', n), n=(0, 4))"
    failing.write_text(
        f'# %% tags=["exercise", "raises-exception"]\nprint(1)\n1 / 0\n\n# %%\n{slid}\n', encoding="utf-8"
    )
    notebook = execute.run(failing)
    exercise, slider = notebook.cells
    assert [output.output_type for output in exercise.outputs] == ["stream"]
    assert {*slider.outputs[0].data} == {"text/plain", "text/html"}
    target = execute.write(notebook, failing)
    assert target.name == "03_wrong.ipynb" and "data-frames" in target.read_text(encoding="utf-8")


def test_progress_bars_are_kept_as_a_terminal_shows_them():
    assert execute.as_on_a_screen("start\n 1%\r 50%\r100%\nend\r\n") == "start\n100%\nend\n"
