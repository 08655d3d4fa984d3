"""load_text: the whole way from a name to arrays, in memory and through files of a cache."""

import hashlib
import sys

import numpy as np
import pytest

from tinyprune.config import DataConfig
from tinyprune.data import CharacterTokenizer, corpus, load_text
from tinyprune.errors import SaveError, TinypruneError, UsageError

TOKENIZERS = ("character", "byte", "word")
LINES = "".join(f"line {i} has é and {'€' * (i % 5)} and number {i * i}\n" for i in range(400))


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder where kept tokens go; chunks are so small that a little text has many."""
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    return tmp_path / "kept"


@pytest.fixture
def load(tmp_path):
    """load_text of a file with the given content; a `large` text goes through files of a cache."""

    def load(content, config=None, *tokenizer, large=False, **digest):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "text").write_bytes(data)
        config = DataConfig(corpus=str(tmp_path / "text"), **(config or {}))
        return load_text(config, *tokenizer, in_memory_bytes=len(data) - large, **digest)

    return load


def arrays(text):
    return [text.train, text.valid, text.test]


def test_pydoc_needs_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = load_text(DataConfig())
    assert text.name == "pydoc" and text.train.dtype == np.uint8
    assert len(text.train) / len(text.valid) == pytest.approx(18, rel=0.01)
    assert text.tokenizer.decode(text.train[:22]) == 'The "assert" statement'
    assert list(text.characters.values()) == list(map(len, arrays(text)))
    assert len(text.digest) == 64 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_splits_together_are_the_text(load, kind):
    text = load(LINES, {"tokenizer": kind, "valid_fraction": 0.3, "test_fraction": 0.2})
    decoded = "".join(map(text.tokenizer.decode, arrays(text)))
    if kind == "word":
        # Words that only held-out text has are unknown, and lines with two spaces lose one.
        assert decoded.startswith("line 0 has é and and number 0\nline 1 has é and € and number 1\n")
        assert decoded.count("\n") == LINES.count("\n")
        assert "<unk>" in decoded
        assert text.characters["train"] > 0 == text.characters["valid"] == text.characters["test"]
    else:
        assert decoded == LINES
        assert sum(text.characters.values()) == len(LINES)
    assert text.train.max() < text.tokenizer.V
    everything = load(LINES, {"tokenizer": kind, "valid_fraction": 0.0, "test_fraction": 0.0})
    np.testing.assert_array_equal(everything.train, everything.tokenizer.encode(LINES))
    assert len(everything.valid) == len(everything.test) == 0
    assert everything.tokenizer.to_dict()["kind"] == kind


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_cached_tokens_are_those_in_memory_and_are_used_again(load, kept, capsys, monkeypatch, kind):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config = {"tokenizer": kind, "valid_fraction": 0.3, "test_fraction": 0.0}
    small = load(LINES, config)
    assert not kept.exists() and capsys.readouterr().err == ""
    large = load(LINES, config, large=True)
    assert "tokenising text: 100%" in capsys.readouterr().err
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    # Found again, also with the tokenizer of a checkpoint.
    again, given = (load(LINES, config, *x, large=True) for x in ([], [large.tokenizer]))
    for text in (large, again, given):
        for mapped, array in zip(arrays(text), arrays(small), strict=True):
            assert mapped.dtype == array.dtype
            np.testing.assert_array_equal(mapped, array)
        assert text.tokenizer.to_dict() == small.tokenizer.to_dict()
        assert (text.characters, text.digest) == (small.characters, small.digest)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == files
    assert "tokenising" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"tokenizer": "byte"}, {"vocabulary": 10}, {"valid_fraction": 0.1}, "text"], ids=str
)
def test_kept_tokens_of_other_settings_or_text_are_not_used(load, change, capsys):
    before = load(LINES, {"tokenizer": "word"}, large=True)
    content, options = ("LINE" + LINES[4:], {}) if change == "text" else (LINES, change)
    config = {"tokenizer": "word"} | options
    after = load(content, config, large=True)
    np.testing.assert_array_equal(after.train, load(content, config).train)
    assert not np.array_equal(after.train, before.train)
    assert (after.digest == before.digest) == (change != "text")
    assert capsys.readouterr() == ("", "")  # no bar without a terminal


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data[:2000] + b"\xff" * 10 + data[2010:]])
def test_damage_is_noticed(load, kept, damage):
    load(LINES, large=True)
    (path,) = kept.glob("*.tokens.npz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TinypruneError, match=r"are damaged .* delete that file"):
        load(LINES, large=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_that_cannot_be_kept_are_an_error_of_saving(load, kept, kind):
    kept.touch()
    with pytest.raises(SaveError, match=r"cannot write tokens .*directory"):
        load(LINES, {"tokenizer": kind}, large=True)


def test_a_failure_half_way_leaves_no_tokens(load, kept):
    with pytest.raises(UsageError, match=r"lacks 'ÿ'"):
        load(LINES + "ÿ", None, CharacterTokenizer.build([LINES]), large=True)
    assert not kept.exists()


def test_words_are_counted_in_training_text_only_and_characters_everywhere(load):
    limited = load(LINES, {"tokenizer": "word", "vocabulary": 9})
    assert (limited.tokenizer.V, limited.train.max()) == (9, 8)
    content = "a a b b b \n" + "c c c c c z"
    text = load(content, {"tokenizer": "word", "valid_fraction": 0.5, "test_fraction": 0.0})
    assert text.tokenizer.words == ["b", "a", "<eos>", "<unk>"]
    assert text.tokenizer.decode(text.valid) == " ".join(["<unk>"] * 6)
    text = load(content, {"valid_fraction": 0.1, "test_fraction": 0.1})
    assert text.tokenizer.characters == "\n abcz"
    assert text.train.max() < text.test.max() == 5


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("end", "characters"), [("a <unk>\n" * 5, 40), ("a b <unk>\n" * 5, 0)])
def test_words_that_became_unknown_stand_for_no_characters(load, large, end, characters):
    """`<unk>` in the text itself is a word like others; only a word that is replaced by it loses characters."""
    config = {"tokenizer": "word", "valid_fraction": len(end) / (80 + len(end)), "test_fraction": 0.0}
    text = load("a <unk>\n" * 10 + end, config, large=large)
    assert text.characters == {"train": 80, "valid": characters, "test": 0}


@pytest.mark.parametrize("large", [False, True])
def test_any_file_can_be_read_as_bytes_and_only_text_as_characters(load, large):
    data = np.random.default_rng(0).bytes(5000).replace(b"\r", b"\n")
    assert np.concatenate(arrays(load(data, {"tokenizer": "byte"}, large=large))).tobytes() == data
    for kind in ("character", "word"):
        with pytest.raises(UsageError, match=r"text holds zero bytes, .*iconv -f utf-16 -t utf-8; --tokenizer byte"):
            load(data, {"tokenizer": kind}, large=large)


SHORT = [("a", {}, "train split needs at least 2 tokens and has 1; .* lower both fractions")]
SHORT += [("abcdefgh", {"valid_fraction": 0.5, "test_fraction": 0.5}, "train split .* has 0")]
SHORT += [("abcdefghijklmnop", {}, "valid split .* has 0; .* raise data.valid_fraction")]
SHORT += [("abcdefghijklmnop", {"valid_fraction": 0.0, "test_fraction": 0.1}, "test split .* has 1")]
SHORT += [("   \t  " * 10, {"tokenizer": "word"}, "train split .* has 0")]


@pytest.mark.parametrize(("content", "config", "said"), SHORT)
def test_too_short_a_text_is_refused(load, content, config, said):
    with pytest.raises(UsageError, match=rf"text is too short, {len(content)} bytes in all: its {said}"):
        load(content, config)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_same_text_from_another_system_is_the_same_corpus(load, kind, large):
    """A byte order mark and other ends of lines change no token, no cut and not the digest; chunks lie across them."""
    config = {"tokenizer": kind, "valid_fraction": 0.3, "test_fraction": 0.2}
    plain = load(LINES, config)
    assert plain.digest == hashlib.sha256(LINES.encode()).hexdigest()
    windows, old = (LINES.replace("\n", end) for end in ("\r\n", "\r"))
    for text in (f"\ufeff{LINES}", windows, f"\ufeff{old}"):
        found = load(text, config, large=large)
        assert (found.digest, found.characters) == (plain.digest, plain.characters)
        assert found.tokenizer.to_dict() == plain.tokenizer.to_dict()
        for array, expected in zip(arrays(found), arrays(plain), strict=True):
            np.testing.assert_array_equal(array, expected)
