"""Make the files of a course from each text, text/aN.py.

    python notebooks/assignments/build.py source            source/aN/aN.ipynb, for nbgrader
    python notebooks/assignments/build.py folders           aN/, the folders for students
    python notebooks/assignments/build.py gradescope a2     a2-gradescope.zip, with hidden tests
    python notebooks/assignments/build.py variant --seed 7  variant-7/, a course with other formulas
    python notebooks/assignments/build.py key --seed 7      prints answers of variant 7 and exam 7
    python notebooks/assignments/build.py lecture           lecture/NN.html, slides of each chapter

A folder has the file to fill in, the visible tests, and pytest's settings; it is committed. The
source notebooks have the same tasks and are not committed; nbgrader's own steps remove solutions
and hidden tests from them. Cells of a text begin with

    # %% [markdown]                              for students to read
    # %% given="a2_imports"                      runs with the answers, and with the tests
    # %% tools="a2_tools"                        runs with the tests only; the first code cell
    # %% solution="a2_1"                         has a BEGIN SOLUTION … END SOLUTION
    # %% test="a2_1_forward" points=2            a visible test
    # %% test="a2_1_forward_hidden" points=3     all of it between BEGIN and END HIDDEN TESTS

and the name of a test begins with that of its task.
"""

from __future__ import annotations

import ast
import html
import json
import random
import re
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jupytext
import nbformat
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
from tinyprune.io.files import replace_file

FOLDER = Path(__file__).parent
RULES = FOLDER / "variants.toml"
NAMES = sorted(path.stem for path in (FOLDER / "text").glob("a[0-9]*.py"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HIDDEN = "# Hidden tests run here when your work is marked"
REPOSITORY = "https://github.com/tinyprune/tinyprune"
# of a chapter's text: headings, formulas and tables; where its last sentence begins
BLOCKS = re.compile(r"(^#+ .*|\$\$[^$]*\$\$|(?:^\|.*\n?)+)", re.MULTILINE)
SENTENCES = re.compile(r"\n\n|^(?:-|\d\.) |(?:(?<=[.?!])|(?<=[.?!]\)))\s(?=[A-Z(*])", re.MULTILINE)


class TextError(Exception):
    """A text has a mistake; the message says where."""


def notebook_of(name: str, folder: Path = FOLDER) -> NotebookNode:
    """Return nbgrader's source notebook of a text, with solutions and hidden tests."""
    text = jupytext.read(folder / "text" / f"{name}.py")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    for number, cell in enumerate(text.cells):
        new_cell = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        new = new_cell(cell.source, id=f"{name}-{number}")
        if cell.cell_type == "code":
            new.metadata["nbgrader"], new.source = described(name, cell)
        notebook.cells.append(new)
    check_names(name, notebook)
    return notebook


def check_names(name: str, notebook: NotebookNode) -> None:
    """Raise TextError if two cells have one name, or a test assigns to what an answer defines.

    In a notebook such a test would overwrite the answer.
    """
    labels = [
        cell.metadata.nbgrader.grade_id for cell in notebook.cells if cell.cell_type == "code"
    ]
    for label in labels:
        if labels.count(label) > 1:
            raise TextError(f"{name}: {label} is the name of {labels.count(label)} cells")
    defined, used = set(), {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        about = cell.metadata.nbgrader
        tree = ast.parse(cell.source)
        if about.solution:
            defined |= {node.name for node in tree.body if hasattr(node, "name")}
        elif about.grade:
            for node in ast.walk(tree):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    used[node.id] = about.grade_id
    for other in sorted(defined & set(used)):
        raise TextError(f"{name}: {used[other]} must not assign to {other}, which is the answer")


def described(name: str, cell: NotebookNode) -> tuple[dict, str]:
    """Return nbgrader's metadata of a code cell, and its source."""
    kinds = [kind for kind in ("given", "tools", "solution", "test") if kind in cell.metadata]
    if len(kinds) != 1:
        raise TextError(
            f"{name}: a code cell must be given, tools, solution or test, got {dict(cell.metadata)}"
        )
    (kind,) = kinds
    label = cell.metadata[kind]
    if not re.fullmatch(rf"{name}_\w+", label):
        raise TextError(f"{name}: the name of a cell must begin with {name}_, got {label}")
    about = {
        "cell_type": "code",
        "grade": kind == "test",
        "grade_id": label,
        "locked": kind != "solution",
        "schema_version": 3,
        "solution": kind == "solution",
        "task": False,
    }
    source = cell.source
    if (kind == "tools") != label.endswith("_tools"):
        raise TextError(f"{name}: {label}: tools, and nothing else, end in _tools")
    if kind == "test":
        about["points"] = cell.metadata["points"]
        if '"""' in source or "'''" in source:
            raise TextError(
                f"{name}: {label}: no texts of several lines in a test; it becomes a function"
            )
        if label.endswith("_hidden"):
            points = f"{about['points']} point{'s' * (about['points'] != 1)}"
            source = f"{HIDDEN}, for {points}.\n{source}"
        else:
            source += f'\nprint("passed: {label}. Hidden tests of {task_of(label)} remain.")'
    return about, source


def task_of(label: str) -> str:
    """Return the task of a test, such as a2_3 for a2_3_backward_hidden."""
    return "_".join(label.split("_")[:2])


def released(notebook: NotebookNode, hidden: bool = False) -> NotebookNode:
    """Return the notebook for students: without solutions and, unless `hidden`, hidden tests."""
    for step in [ClearSolutions()] if hidden else [ClearSolutions(), ClearHiddenTests()]:
        notebook, _ = step.preprocess(nbformat.from_dict(notebook), {})
    return notebook


def stub(name: str, notebook: NotebookNode) -> str:
    """Return the answers to fill in as a Python file, with texts as comments and without tests."""
    keep = []
    for cell in released(notebook).cells:
        about = cell.metadata.get("nbgrader", {})
        if not about.get("grade") and not about.get("grade_id", "").endswith("_tools"):
            keep.append(cell)
    parts = []
    for cell in keep:
        if cell.cell_type == "markdown":
            parts.append(
                "# %% [markdown]\n"
                + textwrap.indent(cell.source, "# ", lambda line: True).replace("# \n", "#\n")
            )
        else:
            parts.append(f"# %%\n{cell.source}")
    return "\n\n".join(parts) + "\n"


def answers(notebook: NotebookNode) -> str:
    """Return the reference solution as a file that replaces the stub."""
    cells = (c for c in notebook.cells if c.cell_type == "code" and not c.metadata.nbgrader.grade)
    return (
        "\n\n".join(c.source for c in cells if not c.metadata.nbgrader.grade_id.endswith("_tools"))
        + "\n"
    )


def tests(name: str, notebook: NotebookNode, hidden: bool) -> str:
    """Return a file for pytest: each test a function, marked with its task and its points."""
    head = f'"""Tests of {name}: pytest {name}, or one task: pytest {name} -m {name}_1"""\n'
    parts, functions = [head], []
    for cell in released(notebook, hidden).cells:
        about = cell.metadata.get("nbgrader", {})
        label = about.get("grade_id", "")
        source = re.sub(r"^\s*### (BEGIN|END) HIDDEN TESTS\n?", "", cell.source, flags=re.MULTILINE)
        if about.get("grade"):
            source = "\n".join(
                line
                for line in source.split("\n")
                if not line.startswith(('print("passed: ', HIDDEN))
            )
            if not source.strip():
                continue
            marks = [f"@pytest.mark.{task_of(label)}", f"@pytest.mark.points({about['points']})"]
            marks += ["@pytest.mark.hidden"] if label.endswith("_hidden") else []
            functions.append(
                "\n".join(marks)
                + f"\ndef test_{label}():\n{textwrap.indent(source.strip(), '    ')}\n"
            )
        elif about.get("locked"):
            parts.append(source.strip() + "\n")
    parts.append("import pytest\n")
    return "\n".join(parts) + "\n\n" + "\n\n".join(functions)


def settings(name: str, notebook: NotebookNode) -> str:
    """Return the pytest.ini of a folder, with the tasks as markers."""
    tasks = sorted(
        {
            task_of(c.metadata.nbgrader.grade_id)
            for c in notebook.cells
            if c.metadata.get("nbgrader", {}).get("grade")
        }
    )
    lines = [
        "[pytest]",
        "addopts = -p tinyprune.course.pytest_plugin --strict-markers --tb=no -rN -q",
        "markers =",
    ]
    return "\n".join([*lines, *(f"    {task}: the tests of task {task}" for task in tasks)]) + "\n"


def folder_of(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """Return the files of the folder for students: path → content."""
    notebook = notebook_of(name, folder)
    return {
        f"{name}/{name}.py": stub(name, notebook),
        f"{name}/test_{name}.py": tests(name, notebook, hidden=False),
        f"{name}/pytest.ini": settings(name, notebook),
    }


def source_of(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """Return nbgrader's source notebook, with solutions and hidden tests: path → content."""
    return {f"source/{name}/{name}.ipynb": nbformat.writes(notebook_of(name, folder)) + "\n"}


def write(files: dict[str, str], directory: Path) -> None:
    """Write files below a directory."""
    for path, content in files.items():
        replace_file(directory / path, content.encode())


def gradescope(name: str, target: Path, folder: Path = FOLDER) -> None:
    """Write the zip file for Gradescope: all tests, and scripts that install and run them."""
    notebook = notebook_of(name, folder)
    # Gradescope's own python3 may be older than 3.11 and must not be changed.
    install = (
        "#!/usr/bin/env bash\nset -e\n"
        "apt-get update && apt-get install -y python3-venv bubblewrap\n"
        "python3 -m venv /autograder/uv && /autograder/uv/bin/pip install uv\n"
        # answers run as another user, who cannot enter root's home
        "export UV_PYTHON_INSTALL_DIR=/autograder/python\n"
        "/autograder/uv/bin/uv venv --python 3.12 /autograder/venv\n"
        "/autograder/uv/bin/uv pip install --python /autograder/venv pytest "
        f'"tinyprune @ {REPOSITORY}/archive/main.zip"\n'
    )
    run = (
        "#!/usr/bin/env bash\n"
        "chmod -R go= /autograder/source /autograder/submission /autograder/results\n"
        f"cd /autograder/source/{name}\n"
        "/autograder/venv/bin/python -m pytest . -p no:cacheprovider "
        f"--submission=/autograder/submission/{name}.py "
        "--results=/autograder/results/results.json\n"
    )
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("setup.sh", install)
        archive.writestr("run_autograder", run)
        archive.writestr(f"{name}/test_{name}.py", tests(name, notebook, hidden=True))
        archive.writestr(f"{name}/pytest.ini", settings(name, notebook))


def rules_of(path: Path, name: str) -> list[dict]:
    """Return the rules for one text that a file like variants.toml has.

    Raises TextError if one of them is not a rule.
    """
    try:
        rules = tomllib.loads(path.read_text("utf-8")).get(name, [])
    except (OSError, ValueError) as error:
        raise TextError(f"{path} cannot be read as rules: {error}") from error
    for rule in rules:
        if not (isinstance(rule, dict) and rule.get("draw") and rule.get("change")):
            raise TextError(f"{path}: a rule of {name} needs `draw` and `change`, got {rule}")
    return rules


def varied(name: str, text: str, seed: str, rules: Path = RULES) -> str:
    """Return a text with the substitutions of a file of rules, whose values the seed draws."""
    rng = random.Random(f"{name} {seed}")
    for rule in rules_of(rules, name):
        drawn = rng.choice(rule["draw"])
        for old, new in rule["change"]:
            if old not in text:
                raise TextError(f"{name}: {rules.name} changes “{old}”, which is not in the text")
            for key, value in drawn.items():
                new = new.replace(f"«{key}»", value)
            text = text.replace(old, new)
    return text


def variant(seed: str, rules: Path = RULES, directory: Path = FOLDER) -> Path:
    """Write a course directory whose tasks have other formulas, drawn from the seed."""
    course = directory / f"variant-{seed}"
    write({"nbgrader_config.py": (FOLDER / "nbgrader_config.py").read_text("utf-8")}, course)
    for name in NAMES:
        text = (FOLDER / "text" / f"{name}.py").read_text("utf-8")
        write({f"text/{name}.py": varied(name, text, seed, rules)}, course)
        write(folder_of(name, course) | source_of(name, course), course)
        gradescope(name, course / f"{name}-gradescope.zip", course)
    return course


def key(seed: str, rules: Path = RULES) -> str:
    """Return the answers of a variant and of an exam as Markdown; they are made anew, not stored.

    Raises TextError unless the seed is an integer from 0 on.
    """
    from exam import as_markdown, sheet

    if not re.fullmatch(r"[0-9]+", seed):
        raise TextError(f"--seed must be an integer, 0 or more, got {seed}")
    parts = [as_markdown(sheet(int(seed)), int(seed), key=True)]
    with TemporaryDirectory() as course:
        for name in NAMES:
            text = (FOLDER / "text" / f"{name}.py").read_text("utf-8")
            write({f"text/{name}.py": varied(name, text, seed, rules)}, Path(course))
            solution = answers(notebook_of(name, Path(course)))
            parts.append(
                f"# Answers to {name.upper()} of variant {seed}\n\n```python\n{solution}```\n"
            )
    return "\n".join(parts)


def mathml(tex: str, display: bool) -> str:
    """Return a formula as MathML, which browsers draw by themselves."""
    from math_core import LatexToMathML  # for slides and the site only

    tex = rf"\begin{{equation}}{tex}\end{{equation}}" if r"\tag" in tex else tex.strip()
    return LatexToMathML().convert_with_local_state(tex, displaystyle=display)


class WithFormulas(IPythonRenderer):
    """Writes Markdown as HTML, and its formulas as MathML."""

    def block_math(self, body: str) -> str:
        """Return a formula on a line of its own."""
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        """Return a formula within a sentence."""
        return mathml(body, display=False)


def written(markdown: str) -> str:
    """Return Markdown as HTML; a single paragraph without its tags."""
    page = MarkdownWithMath(renderer=WithFormulas(escape=False)).render(markdown).strip()
    return page[3:-4] if page.startswith("<p>") and page.count("<p>") == 1 else page


class Slide(NamedTuple):
    """What a chapter can show on a slide, and what to say."""

    rank: int  # 0 pictures, 1 formulas, tables and the ends of sliders, 2 what a cell printed
    section: str
    body: str  # HTML
    caption: str  # Markdown, as the notes
    notes: list[str]  # the words before and after


def slides_of(chapter: Path) -> list[Slide]:
    """Return all that a chapter can show but its map, in order."""
    section = said = ""
    notes, found = [""], []
    for cell in nbformat.read(chapter, 4).cells:
        if cell.cell_type == "markdown":
            words = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            prose = re.sub(r"^#+ .*", "", words, flags=re.MULTILINE)
            notes.append(prose)
            notes = [prose]
            for part in BLOCKS.split(words):
                if part.startswith("#"):
                    section = said = part.lstrip("# ")
                elif part.startswith(("$$", "|")):
                    found.append(Slide(1, section, written(part), said, notes))
                elif part.strip():
                    said = SENTENCES.split(part.strip())[-1]
        elif "you_are_here(" not in cell.source:
            comment = re.match(r"(?:# (?!%).*\n)+", cell.source)
            about = re.sub(r"(^|\n)# ", " ", comment[0]).strip() if comment else said
            for output in cell.outputs:
                for rank, body, alt in shown(output, without_order(about)):
                    found.append(Slide(rank, section, body, without_order(alt), notes))
    return found


def without_order(caption: str) -> str:
    """Return what is drawn, of “Draws what is drawn”; names of variables stay small."""
    drawn = re.sub(r"^(Measures? and d|D)raws? ", "", caption)
    return drawn[0].upper() + drawn[1:] if re.match(r"an? |[a-z]{3,}[ ,]", drawn) else drawn


def shown(output: NotebookNode, about: str) -> Iterator[tuple[int, str, str]]:
    """Yield rank, HTML and caption of all that an output shows."""
    data = output.get("data", {})
    frames = re.search(r'data-frames="([^"]*)"', data.get("text/html", ""))
    if "image/png" in data:
        alt = output.metadata.get("image/png", {}).get("alt", about)
        source = f"data:image/png;base64,{data['image/png']}"
        yield 0, f'<img src="{source}" alt="{html.escape(alt)}">', alt
    elif frames:
        pages = json.loads(html.unescape(frames[1]))["frames"]
        middle = len(pages) // 2
        for at in sorted({0, middle, len(pages) - 1}):
            alt = re.search(r'alt="([^"]*)"', pages[at])
            yield int(at != middle), pages[at], html.unescape(alt[1]) if alt else about
    elif data.get("text/markdown", "").startswith("|"):
        yield 1, written(data["text/markdown"]), about
    elif output.get("name") == "stdout":
        lines = [x for x in output.text.splitlines() if not x.startswith("computed by your")]
        if any(map(str.strip, lines)) and len(lines) <= 16:
            table = "──" in output.text
            yield 2 - table, f"<pre>{html.escape(chr(10).join(lines))}</pre>", about


def lecture(chapter: Path, most: int = 10) -> str:
    """Return a page of at most so many slides with notes: pictures first, the others to fill up."""
    found = slides_of(chapter)
    chosen: set[int] = set()
    for rank in range(3):
        these = [at for at, slide in enumerate(found) if slide.rank == rank]
        room = min(most - len(chosen), len(these))
        chosen |= {these[i * len(these) // room] for i in range(room)}  # evenly
    slides = [
        f"<section><h1>{written(section)}</h1><p>{written(caption)}</p>{body}<details><summary>Notes"
        f"</summary>{written((2 * chr(10)).join(notes))}</details></section>"
        for _, section, body, caption, notes in map(found.__getitem__, sorted(chosen))
    ]
    if len(chosen) < most:
        slides.append(f"<section><p>This chapter has {len(chosen)} slides.</p></section>")
    style = "body {font-size: 130%} img {max-width: 100%} td {padding: 0 1em} "
    style += "section {min-height: 95vh; max-width: 50em; margin: auto}"
    # links of a chapter begin at its folder
    head = f"<meta charset='utf-8'><base href='../../'><title>{chapter.stem}</title>"
    return f"<!doctype html><html lang='en'>{head}<style>{style}</style>{''.join(slides)}</html>\n"


def main(arguments: list[str]) -> None:
    """Write what the first argument names."""
    match arguments:
        case ["gradescope", *names]:
            for name in names:
                gradescope(name, Path(f"{name}-gradescope.zip"))
        case ["source" | "folders" as what]:
            for name in NAMES:
                write(source_of(name) if what == "source" else folder_of(name), FOLDER)
        case ["variant" | "key" as what, "--seed", seed, *own]:
            match own:
                case []:
                    rules = RULES
                case ["--rules", file]:
                    rules = Path(file)
                case _:
                    sys.exit(
                        f"after --seed {seed} only --rules FILE can follow, got {' '.join(own)}"
                    )
            print(key(seed, rules) if what == "key" else f"written to {variant(seed, rules)}")
        case ["lecture"]:
            for chapter in sorted(FOLDER.parent.glob("[0-9]*.ipynb")):
                page = lecture(chapter)
                write({f"lecture/{chapter.stem}.html": page}, FOLDER)
                print(f"lecture/{chapter.stem}.html: {page.count('<summary>Notes')} slides")
        case _:
            sys.exit(
                "usage: build.py source, folders, gradescope a1, variant --seed 7 [--rules FILE], "
                "key --seed 7 [--rules FILE], or lecture"
            )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except TextError as error:
        sys.exit(f"build.py: {error}")
