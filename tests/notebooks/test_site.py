"""The documentation site is complete and its links work; the commands on its pages exist."""

import importlib
import re
import shlex

import pytest
from folder import FOLDER, NAMES

from tinyprune.cli.parser import build_parser

REPOSITORY = FOLDER.parent
PAGES = [REPOSITORY / page for page in ("README.md", "data/results/studies.md", "data/results/speed/README.md")]
PAGES += sorted((FOLDER / "site" / "pages").glob("*.md"))


def shown(page):
    """Return the `tinyprune` commands in a page's blocks of shell code, as lists of words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    parts = (shlex.split(part, comments=True) for line in lines for part in line.split("&&"))
    return [words[1:] for words in parts if words[:1] == ["tinyprune"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_that_pages_show_are_understood(page):
    for words in shown(page):
        build_parser().parse_args(words)  # or raises UsageError
    # This shows that the pattern still finds them.
    assert shown(page) or page.stem in ("commands", "reading-the-code", "ten-layers", "the-papers-heads")


def test_a_folded_cell_shows_its_first_comment_and_its_output(tmp_path, monkeypatch):
    pytest.importorskip("properdocs")
    from nbformat import v4, write

    monkeypatch.syspath_prepend(FOLDER / "site")
    gather = importlib.import_module("gather")
    cell = v4.new_code_cell("%matplotlib inline\n# Draw <all>", metadata={"jupyter": {"source_hidden": True}})
    cell.outputs = [v4.new_output("stream", text="drawn")]
    write(v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    text, _ = gather.notebook(tmp_path / "a.ipynb")
    summary = "<details markdown><summary>Code: Draw &lt;all&gt;</summary>"
    code = "```python\n%matplotlib inline\n# Draw <all>\n```"
    assert re.sub(r"\n\s*\n", "\n", text).strip() == f"{summary}\n{code}\n</details>\n    drawn"


@pytest.mark.slow
def test_site_is_complete_loads_nothing_from_elsewhere_and_has_no_solutions(site):
    for name in NAMES:
        page = (site / "chapters" / f"{name}.html").read_text("utf-8")
        assert '.png"' in page
        # a tag's attributes may hold a page of their own, as that of an opened head
        prose = re.sub(r"<(pre|code|script)\b.*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
        assert "$" not in prose, "a formula that is not set"
    commands = (site / "commands.html").read_text("utf-8")
    assert all(f'id="tinyprune-{name}"' in commands for name in ("run", "gate", "experiment", "bench"))
    assert "persistent score" in (site / "API/tinyprune/ops/attention.html").read_text("utf-8")
    loaded = r'<(?:script|img|iframe|source)[^>]* src="(?:https?:)?//|<link[^>]* rel="stylesheet" href="(?:https?:)?//'
    assert [path.name for path in site.rglob("*.html") if re.search(loaded, path.read_text("utf-8"))] == []
    pages = [(site / "assignments" / f"a{i}.html").read_text("utf-8") for i in range(1, 7)]
    assert all("YOUR CODE HERE" in page for page in pages)
    assert not any("SOLUTION" in page or "HIDDEN TESTS" in page for page in pages)
