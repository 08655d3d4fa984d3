"""Each notebook is a pair, a text source and the executed notebook: they agree, are complete, and their links work."""

import json
import re
import sys

import jupytext
import numpy as np
import pytest
from folder import FOLDER, NAMES

README = (FOLDER / "README.md").read_text("utf-8")
REPOSITORY = FOLDER.parent
COLAB = "https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks"


def executed(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def sources(name, kind):
    return [cell.source for cell in jupytext.read(FOLDER / f"{name}.py").cells if cell.cell_type == kind]


def markdown(name):
    return "\n\n".join(sources(name, "markdown"))


def is_plumbing(cell):
    """Return whether a cell of code is visible, and neither an exercise nor what the chapter is about."""
    about = cell["metadata"]
    return not {"subject", "exercise"} & {*about.get("tags", [])} and not about.get("jupyter", {}).get("source_hidden")


def code_share(name):
    """Return the share of visible code and listings in a chapter, in lines of text; a picture counts as twenty."""
    code = text = 0
    for cell in executed(name)["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "markdown":
            text += sum(1 + len(line) // 88 for line in lines)
        elif is_plumbing(cell):
            code += len(lines)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            code += "".join(data.get("text/markdown", "")).count("\n")
            text += "".join(output.get("text", "")).count("\n") + 20 * ("image/png" in data or "text/html" in data)
    return code / (code + text)


def anchors(text):
    """Return the anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_all_chapters_are_there():
    prefixes = [name.split("_")[0] for name in NAMES]
    assert all(re.fullmatch(r"\d\d[bc]?", prefix) for prefix in prefixes)
    assert list(dict.fromkeys(prefix[:2] for prefix in prefixes)) == [f"{i:02}" for i in range(12)]
    assert {path.stem for path in FOLDER.glob("[0-9]*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pair_is_in_step(name):
    source = jupytext.read(FOLDER / f"{name}.py")
    wanted = [(cell.cell_type, cell.source) for cell in source.cells]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in executed(name)["cells"]]
    for number, (cell, other) in enumerate(zip(wanted, found, strict=False)):
        assert cell == other, f"cell {number} differs: python notebooks/execute.py {name}"
    assert len(wanted) == len(found), f"{len(wanted)} cells in the source: python notebooks/execute.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_in_colab_the_code_stays_in_the_repository(name, monkeypatch):
    """So that the results are found beside it, also after a restart, when the package is found without this cell."""
    first, commands = sources(name, "code")[0], []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, **options: commands.append(command))
    monkeypatch.setattr("sys.path", [])
    exec(first, {})
    assert sys.path == ["repository"] and "pip install -q -e ./repository " in commands[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    exec(first, {})
    assert len(commands) == len(sys.path) == 1


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_was_executed_without_an_error_and_is_small(name):
    code = [cell for cell in executed(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    found = re.findall(r"/(?:home|root|Users|tmp|work)/[\w.]+", json.dumps(outputs))
    assert not found, "paths of the machine that ran it"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_chapter_has_all_parts_and_is_linked_forward_and_back(name):
    text, at = markdown(name), NAMES.index(name)
    assert text.startswith(f"# {name.split('_')[0]} · ")
    parts = [f"]({COLAB}/{name}.ipynb)", "**After this chapter you can**", "**You need**"]
    parts += [f"({neighbour}.ipynb)" for neighbour in NAMES[max(at - 1, 0) : at] + NAMES[at + 1 : at + 2]]
    assert [part for part in parts if part not in text] == []
    assert f"({name}.ipynb)" in README
    folded = re.findall(r"<details><summary>([\w ]+)</summary>\n\n.*?\n\n</details>", text, re.DOTALL)
    assert len(folded) == text.count("<details>") == text.count("</details>")
    assert folded.count("Answer") >= 3
    assert set(folded) <= {"Answer", "Hint", "Solution", "Compare with ours"}
    code = "\n".join(sources(name, "code"))
    # The first only looks, and the others have their code in their cells.
    if name[:3] not in ("00_", "11_", "11c"):
        assert "show_source(" in code
    assert "assert" in code and "you_are_here(" in code


@pytest.mark.parametrize("name", NAMES)
def test_code_takes_a_quarter_of_the_page_and_no_cell_that_is_not_folded_is_long(name):
    """Except what the chapter is about, and exercises (tags "subject", "exercise")."""
    assert code_share(name) <= 0.25
    cells = [c for c in jupytext.read(FOLDER / f"{name}.py").cells if c.cell_type == "code" and is_plumbing(c)]
    assert [cell.source for cell in cells if cell.source.count("\n") >= 25] == []


def test_the_course_has_at_most_19_500_words_of_prose():
    prose = [re.sub(r"```.*?```|\$\$.*?\$\$", "", markdown(name), flags=re.DOTALL) for name in NAMES if name < "10"]
    assert len(prose) == 10 and sum(len(text.split()) for text in prose) <= 19_500


def announced(name):
    """Return the minutes to read and to do that the table of README gives a chapter."""
    return tuple(map(int, re.search(rf"\]\({name}\.ipynb\) \| (\d+) min \| (\d+) min", README).groups()))


@pytest.mark.parametrize("name", NAMES)
def test_time_to_read_counts_words_formulas_and_code(name):
    cells = jupytext.read(FOLDER / f"{name}.py").cells
    shown = [
        c.source for c in cells if c.cell_type == "code" and not c.metadata.get("jupyter", {}).get("source_hidden")
    ]
    lines = sum(bool(line.strip()) for source in shown for line in source.splitlines())
    prose = re.sub(r"<details>.*?</details>", "", markdown(name), flags=re.DOTALL)
    formulas, words = re.findall(r"\$\$.*?\$\$", prose, re.DOTALL), re.sub(r"\$\$.*?\$\$", "", prose, flags=re.DOTALL)
    assert abs(len(words.split()) / 100 + 1.5 * len(formulas) + lines / 20 - announced(name)[0]) <= 3.5


def hours(text):
    """Return a number such as 1¼; – is 0."""
    quarters = {"¼": 0.25, "½": 0.5, "¾": 0.75}
    return sum(quarters.get(x, 0) for x in text) + int(re.sub(r"[–*¼½¾]", "", text) or 0)


def test_the_syllabus_counts_hours_as_the_course_does():
    total = np.zeros(5)
    for line in (FOLDER / "assignments" / "SYLLABUS.md").read_text("utf-8").splitlines():
        row = [x.strip() for x in line.strip("|").split("|")]
        if "**hours**" in line:
            assert [hours(x) for x in row[-5:]] == total.tolist()
            total[:] = 0
        elif re.match(r"\| \d+ \|", line):
            counted = np.array([hours(x) for x in row[-5:]])
            numbers = re.findall(r"\b\d\d[bc]?", row[1])
            times = np.array([announced(next(n for n in NAMES if n.startswith(f"{x}_"))) for x in numbers]).sum(0) / 60
            assert np.abs(counted[1:3] - times).max() <= 0.126 and counted[4] == counted[:4].sum(), line
            total += counted


@pytest.mark.parametrize("name", [*NAMES, "README"])
def test_links_work(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", README if name == "README" else markdown(name))
    assert any(target.endswith(".ipynb") for target in targets)
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        own = "README.md" if name == "README" else f"{name}.ipynb"
        file = (FOLDER / (path or own)).resolve()
        assert file.exists(), f"{target} does not exist"
        assert file.is_relative_to(REPOSITORY)
        if fragment:
            inside = markdown(file.stem) if file.suffix == ".ipynb" else file.read_text("utf-8")
            assert fragment in anchors(inside), f"{target}: no such heading"


@pytest.mark.parametrize("name", [name for name in NAMES if name < "10"])
def test_the_page_shows_the_answers_at_work_and_says_whose_they_are(name):
    at_work = 0
    for cell in executed(name)["cells"]:
        said = "".join(text for output in cell.get("outputs", []) for text in output.get("text", ""))
        notes = "".join(
            text for output in cell.get("outputs", []) for text in output.get("data", {}).get("text/markdown", "")
        )
        if "exercise" in cell["metadata"].get("tags", []):
            assert "passed" in said and "output of the reference answer" in notes
        elif "computed by your functions: " in said:
            assert "your functions: nothing" not in said and "are the reference answers to the exercises" in notes
            at_work += 1
    assert at_work or name.startswith("00")
