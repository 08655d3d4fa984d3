"""Corpora: the embedded ones, local files, archives, and how they are cut."""

import dataclasses
import functools
import hashlib
import http.server
import sys
import threading
import zipfile

import pytest

from tinyprune.config import DataConfig
from tinyprune.data.corpora import Entry, catalogue, data_directory, open_corpus, open_entry, pydoc_text, stdlib_text
from tinyprune.errors import TinypruneError, UsageError


def texts(corpus):
    return {split: b"".join(span.read_bytes()) for split, span in corpus.splits.items()}


def test_the_catalogue_has_the_known_corpora_with_licences():
    entries = catalogue()
    assert list(entries) == ["pydoc", "stdlib", "tinyshakespeare", "text8", "enwik8", "wikitext-2", "wikitext-103"]
    for entry in entries.values():
        assert entry.licence
        assert entry.note
        assert bool(entry.url) == bool(entry.file)
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
        assert len(entry.members) in (0, 1, 3)
        assert len(entry.split_bytes) == (3 if len(entry.members) == 1 else 0)
    assert entries["tinyshakespeare"].sha256.startswith("86c4e6aa9db7c042ec79f339dcb96d42")


def test_pydoc_is_the_language_reference():
    text = pydoc_text()
    assert text.startswith('The "assert" statement\n')
    assert len(text) > 400_000
    if sys.version_info[:3] == (3, 11, 7):
        assert (len(text), len(set(text))) == (465_048, 103)


def test_stdlib_is_source_code_in_a_fixed_order_without_tests():
    text = stdlib_text()
    assert 5_000_000 < len(text) < 16_000_000
    # csv.py comes before json/decoder.py.
    assert text.index("class DictReader") < text.index("class JSONDecodeError(ValueError)")
    # Lines of test/, idlelib/ and site-packages/, where this Python has them.
    for absent in ("class TestPyUnicode", "class EditorWindow", "def pytest_addoption"):
        assert absent not in text
    assert text == stdlib_text()


def test_a_local_file_is_cut_in_train_then_valid_then_test(tmp_path):
    path = tmp_path / "mine.txt"
    data = bytes(range(100))
    path.write_bytes(data)
    corpus = open_corpus(DataConfig(corpus=str(path), valid_fraction=0.2, test_fraction=0.1))
    assert corpus.name == "mine.txt"
    assert texts(corpus) == {"train": data[:70], "valid": data[70:90], "test": data[90:]}
    assert corpus.size == 100
    assert corpus.digest() == hashlib.sha256(data).hexdigest()


def test_without_fractions_everything_is_for_training(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"0123456789")
    corpus = open_corpus(DataConfig(corpus=str(path), valid_fraction=0.0, test_fraction=0.0))
    assert texts(corpus) == {"train": b"0123456789", "valid": b"", "test": b""}


@pytest.mark.parametrize("size", range(20, 40))
def test_no_character_is_cut(tmp_path, size):
    path = tmp_path / "mine.txt"
    text = ("é€𝄞" * 20)[:size]
    path.write_text(text, encoding="utf-8")
    corpus = open_corpus(DataConfig(corpus=str(path), valid_fraction=0.3, test_fraction=0.3))
    parts = ["".join(span.read_text()) for span in corpus.splits.values()]
    assert "".join(parts) == text
    assert all(parts)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("0123456789")
    assert open_corpus(DataConfig(corpus="~/mine.txt")).size == 10


@pytest.mark.parametrize(
    ("name", "said"),
    [("shakespear", "no corpus and no file 'shakespear'"), (".", "'.' is a folder"), ("empty.txt", "is empty")],
)
def test_what_is_no_corpus_is_refused_with_a_list_of_those_there_are(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(
        UsageError, match=rf"data\.corpus: .*{said}.*pydoc, stdlib, tinyshakespeare.*path of a text file"
    ):
        open_corpus(DataConfig(corpus=name))


def test_the_data_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TINYPRUNE_DATA", raising=False)
    assert data_directory().as_posix() == "data/downloads"
    monkeypatch.setenv("TINYPRUNE_DATA", str(tmp_path))
    assert data_directory() == tmp_path


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder whose files a server on this machine offers, and the address of the folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TINYPRUNE_DATA", str(tmp_path / "downloads"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def served_zip(served, members):
    folder, address = served
    with zipfile.ZipFile(folder / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return Entry("a-zip", "none", "none", url=f"{address}/text.zip", file="text.zip", members=tuple(members))


def test_an_archive_with_three_files_brings_its_own_splits(served, tmp_path):
    entry = served_zip(served, {"w/train": "a b c\n" * 50, "w/valid": "d e\n", "w/test": "f\n"})
    corpus = open_entry(entry, DataConfig(valid_fraction=0.5))
    assert texts(corpus) == {"train": b"a b c\n" * 50, "valid": b"d e\n", "test": b"f\n"}
    assert (tmp_path / "downloads" / "text.zip").exists()


def test_an_archive_with_one_file_is_cut_where_it_always_is(served):
    entry = dataclasses.replace(served_zip(served, {"text": "0123456789"}), split_bytes=(7, 2, 1))
    assert texts(open_entry(entry, DataConfig())) == {"train": b"0123456", "valid": b"78", "test": b"9"}


def test_a_downloaded_text_is_cut_by_the_fractions(served):
    folder, address = served
    (folder / "text").write_bytes(b"0123456789")
    entry = Entry("a-text", "none", "none", url=f"{address}/text", file="text")
    config = DataConfig(valid_fraction=0.2, test_fraction=0.1)
    assert texts(open_entry(entry, config)) == {"train": b"0123456", "valid": b"78", "test": b"9"}


def test_an_archive_that_is_none_is_an_error(served):
    folder, address = served
    (folder / "text.zip").write_bytes(b"<html>log in first</html>")
    entry = Entry("a-zip", "none", "none", url=f"{address}/text.zip", file="text.zip", members=("text",))
    with pytest.raises(TinypruneError, match=r"text\.zip is not the archive of a-zip"):
        open_entry(entry, DataConfig())


def test_an_archive_without_the_file_is_an_error(served):
    entry = dataclasses.replace(served_zip(served, {"other": "text"}), members=("text",))
    with pytest.raises(TinypruneError, match=r"not the archive of a-zip: .*no item named 'text'"):
        open_entry(entry, DataConfig())


def test_a_download_that_fails_names_the_embedded_corpora(served, tmp_path):
    _, address = served
    entry = Entry("a-text", "none", "none", url=f"{address}/absent", file="text")
    with pytest.raises(TinypruneError, match=r"404.*needs no network: pydoc, stdlib") as raised:
        open_entry(entry, DataConfig())
    assert str(tmp_path / "downloads" / "text") in str(raised.value)
