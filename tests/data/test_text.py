"""load_text: the whole way from a name to arrays, in memory and through memory-mapped files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinyprune.config import DataConfig
from tinyprune.data import ByteTokenizer, CharacterTokenizer, Segments, load_text, spans
from tinyprune.errors import SaveError, TinypruneError, UsageError

TOKENIZERS = ("character", "byte", "word")
LINES = "".join(f"line {i} has é and {'€' * (i % 5)} and number {i * i}\n" for i in range(400))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where kept tokens go, and chunks so small that a little text has many."""
    monkeypatch.setenv("TINYPRUNE_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(spans, "CHUNK", 1000)
    return tmp_path / "kept"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(LINES, encoding="utf-8")
    return str(path)


def test_pydoc_needs_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = load_text(DataConfig())
    assert text.name == "pydoc"
    assert text.train.dtype == np.uint8
    assert len(text.train) / len(text.valid) == pytest.approx(18, rel=0.01)
    assert text.tokenizer.decode(text.train[:22]) == 'The "assert" statement'
    assert text.characters == {"train": len(text.train), "valid": len(text.valid), "test": len(text.test)}
    assert len(text.digest) == 64
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_splits_together_are_the_text(lines, kind):
    text = load_text(DataConfig(corpus=lines, tokenizer=kind, valid_fraction=0.3, test_fraction=0.2))
    whole = "".join(text.tokenizer.decode(part) for part in (text.train, text.valid, text.test))
    if kind == "word":
        # Words of held-out text that training has not seen are unknown, and the text has lines with two spaces.
        assert whole.startswith("line 0 has é and and number 0\nline 1 has é and € and number 1\n")
        assert whole.count("\n") == LINES.count("\n")
        assert "<unk>" in whole
    else:
        assert whole == LINES
    if kind == "word":
        assert text.characters["train"] > 0 and text.characters["valid"] == text.characters["test"] == 0
    else:
        assert sum(text.characters.values()) == len(LINES.encode() if kind == "byte" else LINES)
    assert text.train.max() < text.tokenizer.V


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_memory_mapped_tokens_are_those_in_memory(lines, kept, capsys, kind):
    config = DataConfig(corpus=lines, tokenizer=kind, valid_fraction=0.3, test_fraction=0.0)
    small = load_text(config)
    assert not kept.exists()
    assert capsys.readouterr().err == ""
    large = load_text(config, in_memory_bytes=100)
    assert "tokenising lines.txt: 100%" in capsys.readouterr().err
    for split in ("train", "valid", "test"):
        assert isinstance(getattr(large, split), np.memmap)
        assert getattr(large, split).dtype == getattr(small, split).dtype
        np.testing.assert_array_equal(getattr(large, split), getattr(small, split))
    assert large.tokenizer.to_dict() == small.tokenizer.to_dict()
    assert (large.characters, large.digest) == (small.characters, small.digest)
    np.testing.assert_array_equal(Segments(large.train, 2, 5).batch(3)[0], Segments(small.train, 2, 5).batch(3)[0])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_that_is_read_in_pieces_gives_the_tokens_of_the_whole(lines, kept, kind):
    text = load_text(DataConfig(corpus=lines, tokenizer=kind, valid_fraction=0.0, test_fraction=0.0))
    np.testing.assert_array_equal(text.train, text.tokenizer.encode(LINES))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_kept_tokens_are_used_again(lines, kept, capsys, kind):
    config = DataConfig(corpus=lines, tokenizer=kind)
    first = load_text(config, in_memory_bytes=100)
    files = {p: p.stat().st_mtime_ns for p in kept.rglob("*")}
    assert not [p for p in files if ".part" in p.name]
    capsys.readouterr()
    # With the tokenizer that a checkpoint brings they are the same, too.
    for tokenizer in (None, first.tokenizer):
        again = load_text(config, tokenizer, in_memory_bytes=100)
        np.testing.assert_array_equal(again.train, first.train)
        assert again.characters == first.characters
    assert {p: p.stat().st_mtime_ns for p in kept.rglob("*")} == files
    assert "tokenising" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"tokenizer": "byte"}, {"tokenizer": "word", "vocabulary": 10}, {"valid_fraction": 0.1}, "text"]
)
def test_kept_tokens_of_other_settings_or_text_are_not_used(lines, kept, change):
    config = DataConfig(corpus=lines, tokenizer="word")
    before = load_text(config, in_memory_bytes=100)
    if change == "text":
        with Path(lines).open("r+b") as file:
            file.write(b"LINE")
        changed = config
    else:
        changed = DataConfig(**{**config.to_dict(), **change})
    after = load_text(changed, in_memory_bytes=100)
    np.testing.assert_array_equal(after.train, load_text(changed).train)
    assert not np.array_equal(after.train, before.train)
    assert (after.digest == before.digest) == (change != "text")


@pytest.mark.parametrize("damage", ["cut", "overwritten", "absent"])
def test_damaged_tokens_are_noticed(lines, kept, damage):
    config = DataConfig(corpus=lines)
    load_text(config, in_memory_bytes=100)
    (path,) = kept.glob("*.tokens/train.npy")
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(data[:-10] if damage == "cut" else data[:-10] + b"\xff" * 10)
    with pytest.raises(TinypruneError, match=r"are damaged .* delete that folder"):
        load_text(config, in_memory_bytes=100)


def test_tokens_that_cannot_be_kept_leave_nothing_behind(lines, kept, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYPRUNE_DATA", str(tmp_path / "file"))
    for kind in TOKENIZERS:
        with pytest.raises(SaveError, match=r"cannot keep the tokens of lines\.txt .* set TINYPRUNE_DATA"):
            load_text(DataConfig(corpus=lines, tokenizer=kind), in_memory_bytes=100)


def test_a_failure_half_way_leaves_no_tokens_behind(lines, kept):
    with Path(lines).open("a", encoding="utf-8") as file:
        file.write("ÿ")
    with pytest.raises(UsageError, match=r"lacks 'ÿ'"):
        load_text(DataConfig(corpus=lines), CharacterTokenizer.build([LINES]), in_memory_bytes=100)
    assert list(kept.iterdir()) == []


def test_a_given_tokenizer_is_used_instead_of_a_new_one(lines):
    given = CharacterTokenizer.build([LINES, "and more: ÄÖÜ"])
    text = load_text(DataConfig(corpus=lines), given)
    assert text.tokenizer is given
    np.testing.assert_array_equal(text.train[:50], given.encode(LINES[:50]))
    with pytest.raises(UsageError, match=r"lacks '€'"):
        load_text(DataConfig(corpus=lines), CharacterTokenizer.build([LINES.replace("€", "")]))


def test_vocabulary_limits_words(lines):
    text = load_text(DataConfig(corpus=lines, tokenizer="word", vocabulary=9))
    assert text.tokenizer.V == 9
    assert text.train.max() == 8


def test_words_are_counted_in_training_text_only(tmp_path):
    path = tmp_path / "text"
    path.write_text("a a b b b \n" + "c c c c c c")
    text = load_text(DataConfig(corpus=str(path), tokenizer="word", valid_fraction=0.5, test_fraction=0.0))
    assert text.tokenizer.words == ["b", "a", "<eos>", "<unk>"]
    assert text.tokenizer.decode(text.valid) == "<unk> <unk> <unk> <unk> <unk> <unk>"


def test_every_character_has_a_number_even_if_only_the_end_has_it(tmp_path):
    path = tmp_path / "text"
    path.write_text("ab" * 20 + "z", encoding="utf-8")
    text = load_text(DataConfig(corpus=str(path), valid_fraction=0.1, test_fraction=0.1))
    assert text.tokenizer.characters == "abz"
    assert text.train.max() == 1
    assert text.test.max() == 2


@pytest.mark.parametrize("large", [False, True])
def test_words_that_became_unknown_stand_for_no_characters(tmp_path, kept, large):
    """`<unk>` in the text itself is a word like others; only a word that is replaced by it loses characters."""
    path = tmp_path / "text"
    limit = 10 if large else 10_000
    for end, characters in (("a <unk>\n" * 5, 40), ("a b <unk>\n" * 5, 0)):
        path.write_text("a <unk>\n" * 10 + end)
        valid = min(0.5, len(end) / path.stat().st_size)
        config = DataConfig(corpus=str(path), tokenizer="word", valid_fraction=valid, test_fraction=0.0)
        text = load_text(config, in_memory_bytes=limit)
        assert text.characters["train"] == 80
        assert text.characters["valid"] == characters


def test_a_text_that_has_changed_is_noticed_before_it_is_tokenised(tmp_path):
    path = tmp_path / "text"
    path.write_text("ab" * 50)
    first = load_text(DataConfig(corpus=str(path)))
    path.write_text("cd" * 50)
    with pytest.raises(UsageError, match="is not the one that the model was trained on"):
        load_text(DataConfig(corpus=str(path)), first.tokenizer, digest=first.digest)


@pytest.mark.parametrize("large", [False, True])
def test_any_file_can_be_read_as_bytes_and_only_text_as_characters(tmp_path, kept, large):
    path = tmp_path / "binary"
    data = np.random.default_rng(0).bytes(5000)
    path.write_bytes(data)
    limit = 100 if large else 10_000
    text = load_text(DataConfig(corpus=str(path), tokenizer="byte"), in_memory_bytes=limit)
    assert np.concatenate([text.train, text.valid, text.test]).tobytes() == data
    for kind in ("character", "word"):
        with pytest.raises(UsageError, match=r"binary is not UTF-8 text: byte 0x.. at offset \d+; data.tokenizer"):
            load_text(DataConfig(corpus=str(path), tokenizer=kind), in_memory_bytes=limit)


@pytest.mark.parametrize(
    ("content", "config", "said"),
    [
        ("a", {}, "train split needs at least 2 tokens and has 1; .* lower both fractions"),
        ("abcdefgh", {"valid_fraction": 0.5, "test_fraction": 0.5}, "train split .* has 0"),
        ("abcdefghijklmnop", {}, "valid split .* has 0; .* raise data.valid_fraction"),
        ("abcdefghijklmnop", {"valid_fraction": 0.0, "test_fraction": 0.1}, "test split .* has 1"),
        ("   \t  " * 10, {"tokenizer": "word"}, "train split .* has 0"),
    ],
)
def test_too_short_a_text_is_refused(tmp_path, content, config, said):
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"short\.txt is too short, {len(content)} bytes in all: its {said}"):
        load_text(DataConfig(corpus=str(path), **config))


def test_a_split_that_was_not_asked_for_may_be_empty(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abc")
    text = load_text(DataConfig(corpus=str(path), tokenizer="byte", valid_fraction=0.0, test_fraction=0.0))
    assert (len(text.train), len(text.valid), len(text.test)) == (3, 0, 0)
    assert isinstance(text.tokenizer, ByteTokenizer)


def test_importing_the_package_imports_nothing_slow():
    code = (
        "import sys, tinyprune.data; print([m for m in ('tqdm', 'pydoc_data', 'urllib.request') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
