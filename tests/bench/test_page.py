"""The page on speed and README's table follow from the files that benchmarks printed."""

import json
import re
from pathlib import Path

import pytest

from tinyprune.bench import page
from tinyprune.cli.parser import build_parser
from tinyprune.io.tables import markdown_table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "results" / "speed"
PAGE = (FOLDER / "README.md").read_text("utf-8")
FILES = sorted(FOLDER.glob("*.json*"))
README = (ROOT / "README.md").read_text("utf-8")


def test_every_table_follows_from_its_file():
    assert page.written(PAGE, page.tables(FOLDER)) == PAGE


def test_the_text_has_no_other_measured_number():
    """Outside of the tables no milliseconds, ratios, shares of a speed or tokens a second."""
    marks = "|".join(page.tables(FOLDER))
    text = re.sub(rf"<!-- ({marks}) -->.*?<!-- \1 -->", "", PAGE, flags=re.DOTALL)
    assert len(text) < len(PAGE) / 2
    assert re.findall(r"\d[\d.,]*(?:×| ms\b| µs\b| GFLOP| MiB| tokens)", text) == []


def test_the_table_of_the_readme_follows_from_the_file():
    assert page.written(README, short(FOLDER)) == README


def short(folder):
    return {"speed": markdown_table(page.short_rows(folder))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_row_names_machine_versions_and_a_command_that_exists(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert path.suffix == ".jsonl" and rows
    for row in rows:
        assert all(word in row["machine"] for word in ("processors", "Python", "numpy", "numba"))
        name, *words = row["command"].split()
        assert name == "tinyprune"
        build_parser().parse_args(words)


def test_every_picture_is_shown_and_drawn_by_the_command(tmp_path):
    assert re.findall(r"\((\w+\.png)\)", PAGE) == [path.name for path in FOLDER.glob("*.png")] == ["step.png"]
    (tmp_path / "step.jsonl").write_bytes((FOLDER / "step.jsonl").read_bytes())
    page.picture(tmp_path)
    assert (tmp_path / "step.png").read_bytes()[:4] == b"\x89PNG"


def test_another_number_makes_other_tables(tmp_path):
    for path in FILES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "step.jsonl").read_text("utf-8")
    peer = next(row for row in map(json.loads, text.splitlines()) if row["subject"] == "torch plain")
    slower = peer | {"ratio_to_subject": 99.0}
    (tmp_path / "step.jsonl").write_text(text.replace(json.dumps(peer), json.dumps(slower)), "utf-8")
    before, after = page.step_rows(FOLDER), page.step_rows(tmp_path)
    assert [b == a for b, a in zip(before, after, strict=True)] == [False] + [True] * (len(before) - 1)
    assert page.written(PAGE, page.tables(tmp_path)) != PAGE
    fastest = page.fastest(page.read(FOLDER, "step")["tiny"], "torch")
    text = text.replace(json.dumps(fastest), json.dumps(fastest | {"median_ms": 31.0}))
    (tmp_path / "step.jsonl").write_text(text, "utf-8")
    assert page.written(README, short(tmp_path)) != README


def test_a_page_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="the page must have <!-- step --> twice, got 0 pairs"):
        page.written("# Speed", page.tables(FOLDER))
