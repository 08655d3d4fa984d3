"""Corpora: the embedded ones, local files and archives, and how they are cut."""

import gzip
import hashlib
import io
import sys
import zipfile
from codecs import BOM_UTF8

import pytest

from tinyprune.config import DataConfig
from tinyprune.data.corpora import (
    Entry,
    absolute_corpus,
    catalogue,
    interleaved,
    open_corpus,
    open_entry,
    plain_text,
    without_repeats,
)
from tinyprune.errors import TinypruneError, UsageError


def test_the_catalogue_has_the_known_corpora_with_licences():
    entries = catalogue()
    known = "pydoc stdlib sotu factbook tinyshakespeare text8 enwik8 wikitext-2 wikitext-103"
    assert list(entries) == known.split()
    for entry in entries.values():
        assert entry.licence and entry.note
        assert bool(entry.url) == bool(entry.file)
        assert len(bytes.fromhex(entry.sha256)) == (32 if entry.url else 0)
        assert len(entry.members) in (0, 1, 3)
        assert len(entry.split_bytes) == (3 if len(entry.members) == 1 else 0)
    assert entries["tinyshakespeare"].sha256.startswith("86c4e6aa9db7c042ec79f339dcb96d42")


def test_only_the_mark_at_the_beginning_and_line_ends_change():
    given = BOM_UTF8 + b"a\r\nb\rc\r\r\n\xff\x0b\x85" + BOM_UTF8
    assert plain_text(given) == b"a\nb\nc\n\n\xff\x0b\x85" + BOM_UTF8


def test_stdlib_is_source_code_in_a_fixed_order_without_tests():
    splits = open_corpus(DataConfig(corpus="stdlib")).splits
    text = b"".join(splits.values()).decode()
    assert 5_000_000 < len(text) < 16_000_000
    # csv.py comes before json/decoder.py.
    assert text.index("class DictReader") < text.index("class JSONDecodeError(ValueError)")
    # Lines of test/, idlelib/ and site-packages/, where this Python has them.
    for absent in ("class TestPyUnicode", "class EditorWindow", "def pytest_addoption"):
        assert absent not in text


def test_whole_documents_go_where_most_is_missing():
    documents = [letter * 10 for letter in "abcdefghi"]
    splits = interleaved(documents, 0.25, 0.1)
    found = {split: "".join(text[0] for text in data.decode().split("\n")) for split, data in splits.items()}
    assert found == {"train": "acdfhi", "valid": "bg", "test": "e"}


def test_a_passage_is_kept_where_it_comes_first_and_tables_of_encodings_are_not():
    long, short = "a passage of some length, as a licence that stands in many files", "short"
    documents = {"a": f"{long}\n\n{short}", "b": f"own\n\n {long}\n\n{short}", "d": long}
    documents["encodings/c"] = "table"
    assert without_repeats(documents) == [f"{long}\n\n{short}", f"own\n\n{short}"]


@pytest.mark.parametrize(("name", "least"), [("pydoc", 10_000), ("stdlib", 200_000)])
def test_documents_that_are_held_out_are_new_to_the_model(name, least):
    """Of pieces of 64 characters half would stand in the training text of pydoc, and a fifth in that of stdlib."""
    config = DataConfig(corpus=name, split="documents", valid_fraction=0.03, test_fraction=0.03)
    train, *others = (data.decode() for data in open_corpus(config).splits.values())
    for text in others:
        pieces = [text[i : i + 64] for i in range(0, len(text) - 64, len(text) // 500)]
        assert len(text) > least and sum(piece in train for piece in pieces) < 0.05 * len(pieces)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def mine(data, valid, test):
        (tmp_path / "mine.txt").write_bytes(data)
        return open_corpus(DataConfig(corpus="~/mine.txt", valid_fraction=valid, test_fraction=test))

    return mine


@pytest.mark.parametrize(("valid", "test"), [(20, 10), (0, 0)])
def test_a_local_file_is_cut_in_train_then_valid_then_test(mine, valid, test):
    data, stop = bytes(range(14, 114)), 100 - test
    corpus = mine(data, valid / 100, test / 100)
    start = stop - valid
    assert corpus.splits == {"train": data[:start], "valid": data[start:stop], "test": data[stop:]}
    assert (corpus.name, corpus.size) == ("mine.txt", 100)
    assert corpus.digest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", range(20, 40))
def test_no_character_is_cut(mine, size):
    text = ("é€𝄞" * 20)[:size]
    parts = [data.decode() for data in mine(text.encode(), 0.3, 0.3).splits.values()]
    assert "".join(parts) == text and all(parts)


@pytest.mark.parametrize(
    ("name", "said"), [("shakespear", "no corpus and no file 'shakespear'"), ("empty.txt", "is empty")]
)
def test_an_unknown_name_is_refused_with_a_list_of_the_corpora(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    said = rf"data\.corpus: .*{said}.*pydoc, stdlib, sotu, factbook, tinyshakespeare.*path of a text file"
    with pytest.raises(UsageError, match=said):
        open_corpus(DataConfig(corpus=name))


def test_a_folder_is_its_text_files_in_order(tmp_path):
    """Hidden files, other encodings and files with zero bytes are left out; a packed one is unpacked."""
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "first.txt").write_text("two\n", "utf-8")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    (folder / "c.txt.gz").write_bytes(gzip.compress("drei ä\n".encode()))
    for name, data in ((".hidden", b"no"), ("picture", b"P\0"), ("latin", b"\xe9"), ("empty", b"")):
        (folder / name).write_bytes(data)
    corpus = open_corpus(DataConfig(corpus=str(folder), valid_fraction=0, test_fraction=0))
    assert (corpus.name, corpus.splits["train"].decode()) == ("texts", "one\n\ntwo\n\ndrei ä\n")
    thirds = {"valid_fraction": 0.3, "test_fraction": 0.3}
    apart = open_corpus(DataConfig(corpus=str(folder), split="documents", **thirds))
    assert sorted(apart.splits.values()) == sorted([b"one\n", b"two\n", "drei ä\n".encode()])
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"the folder .*none holds no file of UTF-8 text"):
        open_corpus(DataConfig(corpus=str(tmp_path / "none")))


def test_a_packed_file_and_standard_input(tmp_path, monkeypatch):
    text = "a line of text\n" * 50
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for name in (str(tmp_path / "book.txt.gz"), absolute_corpus("-")):
        assert b"".join(open_corpus(DataConfig(corpus=name)).splits.values()).decode() == text


def test_a_python_without_its_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="this Python comes without pydoc_data; use stdlib or a text file"):
        open_corpus(DataConfig(corpus="pydoc"))


@pytest.fixture
def entry(server, tmp_path, monkeypatch):
    """The catalogue's entry of a file that the server has: bytes, or the files of a zip archive."""
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path / "downloads"))

    def entry(content, **more):
        if isinstance(content, dict):
            more = {"members": tuple(content)} | more
            with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in content.items():
                    archive.writestr(name, text)
            content = (tmp_path / "zip").read_bytes()
        server.payload = content
        more["sha256"] = hashlib.sha256(content).hexdigest()
        return Entry("a-text", "none", "none", url=server.url, file="text.zip", **more)

    return entry


@pytest.mark.parametrize(
    ("content", "more", "splits"),
    [
        ({"w/train": "a b c\n" * 50, "w/valid": "d e\n", "w/test": "f\n"}, {}, [b"a b c\n" * 50, b"d e\n", b"f\n"]),
        ({"text": "0123456789"}, {"split_bytes": (4, 5, 1)}, [b"0123", b"45678", b"9"]),
        (b"0123456789", {}, [b"0123456", b"78", b"9"]),
    ],
)
def test_how_a_download_is_split(entry, tmp_path, content, more, splits):
    corpus = open_entry(entry(content, **more), DataConfig(valid_fraction=0.2, test_fraction=0.1))
    assert list(corpus.splits.items()) == list(zip(("train", "valid", "test"), splits, strict=True))
    assert (tmp_path / "downloads" / "text.zip").exists()


@pytest.mark.parametrize(
    ("content", "said"), [(b"<html>log in first</html>", ""), ({"other": "text"}, ": .*no item named 'text'")]
)
def test_another_archive_is_an_error(entry, content, said):
    with pytest.raises(TinypruneError, match=rf"text\.zip is not the archive of a-text{said}"):
        open_entry(entry(content, members=("text",)), DataConfig())


def test_a_download_that_fails_says_what_the_server_does_and_names_the_embedded_corpora(entry, server, tmp_path):
    server.status = 404
    said = f"cannot download a-text from {server.url}: 404 .*Not Found.*needs no network: pydoc, stdlib"
    with pytest.raises(TinypruneError, match=said) as raised:
        open_entry(entry(b""), DataConfig())
    assert str(tmp_path / "downloads" / "text.zip") in str(raised.value)
