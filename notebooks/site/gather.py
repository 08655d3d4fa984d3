"""Collects the site's pages from where they are in the repository.

ProperDocs calls `on_files` and `on_page_content`. A page keeps its text: notebooks become Markdown
with their outputs, links to what is a page lead there, and other links into the repository lead to
GitHub. Commands and modules get their pages from the parser and from the docstrings.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import inspect
import posixpath
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import griffe
import nbformat
import tinyprune
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from properdocs.config.defaults import ProperDocsConfig
from properdocs.plugins import event_priority
from properdocs.structure.files import File, Files
from properdocs.structure.nav import Navigation, Section
from properdocs.utils import nest_paths
from tinyprune.cli.parser import build_parser
from tinyprune.play.page import html_page

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
URL = PROJECT["urls"]["Repository"]
# which files are pages or pictures, and the folder that they go to, in the order of the navigation
PLACES = {
    "README.md": "",
    "notebooks/README.md": "chapters",
    "notebooks/[0-9]*.ipynb": "chapters",
    "notebooks/assignments/*.md": "assignments",
    "notebooks/assignments/a*/a*.py": "assignments",
    "data/results/**/*.md": "results",
    "data/results/**/*.png": "results",
    "data/README.md": "data",
    "notebooks/site/pages/*.md": "",
    ".github/CONTRIBUTING.md": "",
    "tinyprune/**/*.py": "API/tinyprune",
}
INDEX = {"README": "index", "__init__": "index"}
NAMES = "public-names.md"
# of a run of the preset tiny, for the first page: tinyprune play RUN notebooks/site/play.json
PLAY = REPOSITORY / "notebooks/site/play.json"
SHOWN = """
## Take heads away

A small language model runs in this page: type, see what each of its heads reads, and click heads
away. [On a page of its own](play.html)

<iframe class="play" src="play.html" title="A language model, and all of its heads" loading="lazy">
</iframe>
"""
spec = importlib.util.spec_from_file_location("", REPOSITORY / "notebooks/assignments/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def is_notebook(path: Path) -> bool:
    """Return whether a page is a chapter or an assignment, whose notebook is built."""
    return path.suffix == ".ipynb" or path.parents[1].name == "assignments"


def places() -> dict[str, str]:
    """Return the place on the site of every file that has one; both are paths with slashes."""
    found = {}
    for pattern, folder in PLACES.items():
        start = re.split(r"[^/]*\*|[^/]*$", pattern)[0]  # the folders before the first *
        for path in sorted(REPOSITORY.glob(pattern), key=lambda p: (p.stem not in INDEX, p)):
            file = path.relative_to(REPOSITORY).as_posix()
            inside = path.name if is_notebook(path) else file.removeprefix(start)
            suffix = ".png" if path.suffix == ".png" else ".md"
            place = Path(folder, inside).with_name(INDEX.get(path.stem, path.stem) + suffix)
            found[file] = place.as_posix()
    return found


def on_config(config: ProperDocsConfig) -> None:
    """Set the navigation."""
    pages = [place for place in places().values() if place.endswith(".md")]
    config.nav = nest_paths([*pages, NAMES])


@event_priority(100)  # before plugins look at the files
def on_files(files: Files, config: ProperDocsConfig) -> Files:
    """Add everything that has a place, in place of the hand-written pages as they are."""
    where = places()
    content: dict[str, str | bytes] = {}
    for path, place in where.items():
        source = REPOSITORY / path
        if source.suffix == ".png":
            content[place] = source.read_bytes()
        elif source.suffix == ".py" and not is_notebook(source):
            module = re.sub(r"(/__init__)?\.py$", "", path).replace("/", ".")
            content[place] = f"---\ntitle: {module.split('.')[-1]}\n---\n::: {module}\n"
        else:
            text = source.read_text("utf-8")
            if is_notebook(source):
                text, pictures = notebook(source)
                content |= {
                    posixpath.join(posixpath.dirname(place), p): pictures[p] for p in pictures
                }
            text += "".join(commands()) if place == "commands.md" else ""
            text = text.replace("\n## ", f"{SHOWN}\n## ", 1) if place == "index.md" else text
            content[place] = with_links(text, path, where)
    content[NAMES] = "".join(public_names())
    content["play.html"] = html_page(PLAY.read_text("utf-8"), "tinyprune")
    kept = [file for file in files if not file.src_uri.endswith(".md")]
    made = [File.generated(config, place, content=text) for place, text in content.items()]
    sources = {
        place: path.removesuffix(".ipynb") + ".py" * path.endswith(".ipynb")
        for path, place in where.items()
    }
    for file in made:
        file.edit_uri = sources.get(file.src_uri)
    return Files(kept + made)


def public_names() -> Iterator[str]:
    """Yield the page of all names of `tinyprune`, with signatures and what each is."""
    yield "# Public names\n\nWhat `import tinyprune as tp` offers, beside rooms such as `tp.ops`.\n"
    for names in tinyprune._NAMES.values():
        for name in names:
            thing = getattr(tinyprune, name)
            about = (inspect.getdoc(thing) or "").split("\n\n")[0]
            home = thing.__module__.replace(".", "/")
            more = f"[more](API/{home}.md#{thing.__module__}.{thing.__name__})"
            is_error = isinstance(thing, type) and issubclass(thing, Exception)
            signature = "" if is_error else str(inspect.signature(thing))
            # annotations are texts: 'str' = 'test' → str = 'test'
            signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
            lines = textwrap.fill(f"{name}{signature}", 78, subsequent_indent="    ")
            yield f"\n## tp.{name}\n\n```python\n{lines}\n```\n\n{about} {more}\n"


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a chapter with its outputs, or an assignment as students get it, and its pictures."""
    assigned = path.suffix == ".py"
    whole = build.released(build.notebook_of(path.stem)) if assigned else nbformat.read(path, 4)
    whole.metadata.language_info = {"name": "python"}  # for colours
    whole.cells = [part for cell in whole.cells for part in folded(cell)]
    text, resources = MarkdownExporter().from_notebook_node(whole, {"unique_key": path.stem})
    about = dict(enumerate(captions(whole.cells)))
    text = re.sub(
        r"!\[png\](\([^)]*_(\d+)_\d+\.png\))", lambda m: f"![{about[int(m[2])]}]{m[1]}", text
    )
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)  # what Jupyter needs
    # a badge would come from another server
    text = re.sub(r"\[!\[([^]]+)\]\(https://colab[^)]+\)\]", r"[\1]", text)
    # in a list a formula must be a paragraph of its own
    text = re.sub(r"^ +(\$\$.*\$\$)$", r"\n    \1\n", text, flags=re.MULTILINE)
    return text.replace("<details>", "<details markdown>"), resources["outputs"]


def captions(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield for each cell what its pictures show: its comment, or the heading of its section."""
    section = said = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            section = next(reversed(re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)), section)
            said = next(reversed(re.findall(r"<summary>Code: (.*?)</summary>", cell.source)), "")
            yield ""
        else:
            comment = re.search(r"^# (.+)", cell.source, re.MULTILINE)
            given = [o.get("metadata", {}).get("image/png", {}).get("alt") for o in cell.outputs]
            about = next(filter(None, given), said or (comment[1] if comment else section))
            yield re.sub(r"[\[\]]", "", about)
            said = ""


def folded(cell: NotebookNode) -> Iterator[NotebookNode]:
    """Yield a cell; if it is folded in JupyterLab its code before it, under the first comment."""
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        comment = re.search(r"^ *# *(.+)", cell.source, re.MULTILINE)
        summary = html.escape(f"Code: {comment[1]}" if comment else "Code")
        code = f"```python\n{cell.source}\n```"
        yield new_markdown_cell(f"<details><summary>{summary}</summary>\n\n{code}\n\n</details>")
        cell.metadata["transient"] = {"remove_source": True}
    yield cell


def with_links(text: str, path: str, where: dict[str, str]) -> str:
    """Return the Markdown of the file `path` with its links as the site needs them."""
    here = posixpath.dirname(where[path]) or "."

    def moved(match: re.Match) -> str:
        target, anchor = match.groups(default="")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        file = target.removeprefix(f"{URL}/blob/main/") if ":" in target else file
        if not target or not (REPOSITORY / file).exists():
            return match[0]
        for page in (file, f"{file}/README.md", f"{file}/__init__.py"):
            if page in where:
                return f"]({posixpath.relpath(where[page], here)}{anchor})"
        kind = "tree" if (REPOSITORY / file).is_dir() else "blob"
        return f"]({URL}/{kind}/main/{file}{anchor})"

    return re.sub(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", moved, text)


def commands() -> Iterator[str]:
    """Yield the help of every command as Markdown."""
    actions = build_parser()._actions
    (subparsers,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=78)
        yield f"\n## tinyprune {name}\n\n```text\n{parser.format_help()}```\n"


def on_nav(nav: Navigation, **_: object) -> None:
    """Write packages as Python does."""

    def rename(section: Section) -> None:
        for child in section.children or ():
            if isinstance(child, Section):
                child.title = child.title.lower()
                rename(child)

    rename(next(item for item in nav.items if item.title == "API"))


def on_page_content(content: str, **_: object) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def formula(match: re.Match) -> str:
        mathml = build.mathml(html.unescape(match[2]), display=match[1] == "div")
        return f'<{match[1]} class="formula">{mathml}</{match[1]}>'

    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, formula, content, flags=re.DOTALL)


class Formulas(griffe.Extension):
    """Makes code of a docstring's formulas, columns and examples: it keeps its lines and spaces."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Mark such paragraphs for Markdown."""
        if obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            for i, text in enumerate(paragraphs[1:], 1):
                columns = re.match(r"\S+ +[=←] |\S.*\S {3,}\S", text)
                if text.startswith(">>>"):
                    paragraphs[i] = f"```pycon\n{text}\n```"
                elif columns and not re.search(r"\w\. [A-Z]", text):
                    paragraphs[i] = textwrap.indent(text, "    ")
            obj.docstring.value = "\n\n".join(paragraphs)
