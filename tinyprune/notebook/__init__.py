"""Tools of the notebooks: a drawing of the model, source of the package, sliders, times, results, a trained model.

They need the extra `notebooks`; nothing else in the package imports them.
"""

from __future__ import annotations

import ast
import inspect
import platform
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.style

import tinyprune
from tinyprune.config import load_preset
from tinyprune.errors import UsageError, missing_extra
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.plots import STYLE
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run

try:
    from IPython.display import HTML, Markdown, display

    from tinyprune.notebook.drawing import you_are_here as you_are_here
    from tinyprune.notebook.frames import sliders as sliders
    from tinyprune.notebook.heads import open_head as open_head
except ImportError:
    raise missing_extra("tinyprune.notebook", "notebooks", __name__) from None

REPOSITORY = Path(tinyprune.__file__).parents[1]
# JupyterLab breaks long lines of code in the middle of words; nbconvert cuts them off, and sets listings as text.
LISTINGS = """<style>
.jp-RenderedHTMLCommon.jp-OutputArea-output pre, .jp-InputArea-editor .highlight pre {
  font: var(--jp-code-font-size)/var(--jp-code-line-height) var(--jp-code-font-family);
  white-space: pre-wrap;
  word-break: normal;
}
</style>"""


def use_style() -> None:
    """Draw figures in the package's style at a size for a page, and show listings as code with whole words."""
    matplotlib.style.use([*STYLE, {"figure.dpi": 100, "figure.constrained_layout.use": True}])
    display(HTML(LISTINGS))


def show_source(*things: Callable[..., Any] | type, docstring: bool = True) -> None:
    """Display the source of functions or classes of the package, each below its file and line.

    Args:
        things: functions (compiled by Numba or not) or classes.
        docstring: whether to show their docstrings.

    Raises:
        UsageError: if there is no Python source to show.
    """
    for thing in things:
        thing = getattr(thing, "py_func", thing)  # what Numba compiled
        try:
            lines, first = inspect.getsourcelines(thing)
            file = Path(inspect.getfile(thing)).resolve()
        except (TypeError, OSError):
            allowed = "functions or classes written in Python"
            raise UsageError(f"things must be {allowed}, got {thing!r}") from None
        code = textwrap.dedent("".join(lines))
        if not docstring:
            code = without_docstrings(code)
        ours = file.is_relative_to(REPOSITORY)
        place = file.relative_to(REPOSITORY).as_posix() if ours else file.name
        display(Markdown(f"`{place}`, line {first}\n\n```python\n{code.rstrip()}\n```"))


def show_lines(function: Callable[..., Any], first: str, last: str) -> None:
    """Display the lines of a function from the first one that contains `first` to the next one that contains `last`.

    Raises:
        UsageError: if there are no such lines.
    """
    function = getattr(function, "py_func", function)
    lines, number = inspect.getsourcelines(function)
    start = next((n for n, line in enumerate(lines) if first in line), len(lines))
    end = next((n for n, line in enumerate(lines) if n >= start and last in line), None)
    if end is None:
        raise UsageError(f"{function.__name__} has no lines from {first!r} to {last!r}")
    code = textwrap.dedent("".join(lines[start : end + 1])).rstrip()
    display(Markdown(f"`{function.__name__}`, line {number + start}\n\n```python\n{code}\n```"))


def without_docstrings(code: str) -> str:
    """Return `code` without the docstrings of its functions and classes, and otherwise unchanged."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or ast.get_docstring(node) is None:
            continue
        text = node.body[0]
        # A body that consists of a docstring keeps it, because it may not be empty.
        if len(node.body) > 1:
            for number in range(text.lineno - 1, text.end_lineno):
                lines[number] = None
            if lines[text.end_lineno] == "":
                lines[text.end_lineno] = None
    return "\n".join(line for line in lines if line is not None)


def results(*path: str) -> Path:
    """Return the path of a study's committed results, such as `results("tradeoff-pydoc", "summary.csv")`.

    Raises:
        UsageError: if it does not exist, for example because the package was installed without its repository.
    """
    found = REPOSITORY.joinpath("data", "results", *path)
    if not found.exists():
        raise UsageError(
            f"{found} does not exist: the results are in the repository, not in the package; "
            "clone it and install it from there: git clone https://github.com/tinyprune/tinyprune && "
            'python -m pip install -e "./tinyprune[notebooks]"'
        )
    return found


def baseline_run(options: Mapping[str, Any] | None = None, name: str = "") -> Run:
    """Return a run of the preset `tiny` with a trained baseline, which the first call trains and keeps.

    It is kept in runs/ beside the package, one for each version of Python, because the text depends on it. A second
    notebook waits for the first to finish training, and one of other settings is trained anew.
    `run.load("train").model` is the model, `run.text` its text.

    Args:
        options: settings that differ from the preset, as for `RunConfig.with_options`, such as {"model.N": 64}.
        name: of this variant, for the name of its folder; without one there may be no options.

    Raises:
        UsageError: if there are options without a name or a name without options, or an option is wrong.
    """
    if bool(options) != bool(name):
        raise UsageError(f"give a variant both options and a name, got options {options!r} and name {name!r}")
    config = load_preset("tiny").with_options(dict(options or {}))
    folder = f"notebooks-python{platform.python_version()}-{name}".removesuffix("-")
    directory = RunDirectory(REPOSITORY / "runs" / folder)
    run = Run(directory, config, get_backend(default_backend()), "run the cell once more")
    with directory.locked(wait=True):
        outdated = directory.started and directory.read_config() != config
        run.prepare(["train"], resume=not outdated, overwrite=outdated)
        if not run.finished("train"):
            run.train(resume=directory.checkpoint("train").exists())
    return run


def best_of_each(works: Mapping[str, Callable[[], Any]], turns: int = 7) -> dict[str, float]:
    """Call several functions in turn, and return the shortest time of each in seconds.

    Other programs can only make a call longer, and a slow moment hits all alike. The first call, which compiles, is not
    timed.
    """
    for work in works.values():
        work()
    shortest = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            shortest[name] = min(shortest[name], time.perf_counter() - start)
    return shortest


def best(work: Callable[..., Any], *arguments: Any, turns: int = 7) -> float:
    """Return the shortest of several calls in seconds; the first call is not timed."""
    return best_of_each({"": lambda: work(*arguments)}, turns)[""]
