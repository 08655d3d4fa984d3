"""Byte-pair tokenizers: those of the package `tokenizers`, also chunk by chunk; nothing is lost, nothing added."""

import json
import sys

import numpy as np
import pytest
import samples
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tokenizers import Tokenizer

from tinyprune.cli.models import pieces
from tinyprune.config import DataConfig
from tinyprune.data import BytePairTokenizer, corpus, load_text, tokenizer_from_dict
from tinyprune.data.corpus import whole_pieces
from tinyprune.errors import MissingExtraError, UsageError, install_command

DESCRIPTIONS = {cut: samples.train_tokenizer(cut) for cut in samples.CUTS}
TOKENIZERS = {cut: BytePairTokenizer(text) for cut, text in DESCRIPTIONS.items()}


@pytest.mark.parametrize("cut", samples.CUTS)
def test_tokens_are_those_of_the_package_and_lose_nothing(cut):
    tokenizer, theirs = TOKENIZERS[cut], Tokenizer.from_str(DESCRIPTIONS[cut])
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.to_dict() == tokenizer.to_dict() and tokenizer.V == 300
    for text in samples.HARD:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64 and ids.tolist() == theirs.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert_array_equal(again.encode(text), ids)
    composing = BytePairTokenizer(samples.changed(DESCRIPTIONS[cut], normalizer={"type": "NFC"}))
    assert composing.encode("e\u0301").tolist() == tokenizer.encode("é").tolist()


PIECES = ["a", "the", "é", "猫", "😀", "'", "'s", "1", "²", ".", "#", " ", " ", "\n", "\n", "\t", "\r", "\u00a0"]


@given(st.lists(st.lists(st.sampled_from([*PIECES, "<|end|>"]), max_size=9).map("".join), max_size=5))
@example(["x 5\n\n\nx  5\nx", " \n = A = \n \n", "1 2  3\n4"])
def test_chunks_have_the_tokens_of_the_whole(chunks):
    text, pieces = "".join(chunks), list(whole_pieces(chunks))
    assert "".join(pieces) == text
    for tokenizer in TOKENIZERS.values():
        found = [i for piece in pieces for i in tokenizer.encode(piece).tolist()]
        assert found == tokenizer.encode(text).tolist()


def test_chunks_end_soon():
    """Also in a text without spaces, and in WikiText, whose lines begin and end with a space."""
    for text in ("the cat saw a dog ", " \n = A title = \n \n The text . \n", "猫は犬を見た。\n"):
        pieces = list(whole_pieces([text] * 9))
        assert len(pieces) >= 9 and max(map(len, pieces)) <= 2 * len(text)


@pytest.mark.parametrize("large", [False, True])
def test_a_corpus_is_encoded_without_loss(large, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(corpus, "CHUNK", 100)
    content = "".join(f"{line}\n" for line in samples.LINES).replace("\r", "") * 20
    (tmp_path / "text").write_bytes(content.encode())
    config = DataConfig(corpus=str(tmp_path / "text"), valid_fraction=0.2, test_fraction=0.0)
    size = len(content.encode())
    text = load_text(config, TOKENIZERS["smollm"], in_memory_bytes=size - large)
    assert text.train.dtype == np.uint16
    train = content[: text.characters["train"]]
    assert sum(text.characters.values()) == len(content)
    assert_array_equal(text.train, TOKENIZERS["smollm"].encode(train))
    assert text.tokenizer.decode(text.valid) == content[len(train) :]


def test_no_special_token_is_added_and_no_text_cut_or_filled_up():
    description = DESCRIPTIONS["gpt2"]
    special = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [special, {"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    template["special_tokens"] = {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    filled |= {"pad_type_id": 0, "pad_token": "<|end|>"}
    changed = samples.changed(description, post_processor=template, truncation=cut, padding=filled)
    assert len(Tokenizer.from_str(changed).encode("the cat")) == 99
    tokenizer = BytePairTokenizer(changed)
    assert_array_equal(tokenizer.encode("the cat saw"), TOKENIZERS["gpt2"].encode("the cat saw"))
    ids = tokenizer.encode("the<|end|>cat").tolist()
    assert ids.count(0) == 1 and tokenizer.decode(ids) == "the<|end|>cat"


def test_generated_tokens_are_shown_as_whole_characters():
    """As soon as they are whole; what never becomes a character is shown as U+FFFD."""
    tokenizer = TOKENIZERS["gpt2"]
    x, owl = (tokenizer.encode(text).tolist() for text in ("x", "🦉"))
    assert len(owl) == 3
    assert list(pieces(tokenizer, 0, x + owl + owl + x)) == ["x", "🦉", "🦉", "x"]
    assert list(pieces(tokenizer, 0, owl[:2] + owl + owl[2:] + x + owl[:2])) == ["\ufffd", "🦉", "\ufffdx", "\ufffd"]


def test_a_model_may_have_more_entries_than_tokens():
    tokenizer = BytePairTokenizer(DESCRIPTIONS["gpt2"], 320)
    assert tokenizer.V == tokenizer_from_dict(tokenizer.to_dict()).V == 320
    assert tokenizer.decode([310, *tokenizer.encode("cat")]) == "cat"
    for bad in (-1, 320):
        with pytest.raises(UsageError, match=rf"must lie in 0 … 319 .* got {bad}"):
            tokenizer.decode([bad])
    with pytest.raises(UsageError, match="has 300 tokens, more than the V = 299 entries"):
        BytePairTokenizer(DESCRIPTIONS["gpt2"], 299)


BYTES = {"type": "ByteLevel", "add_prefix_space": False}
FOREIGN = [
    {"model": {"type": "WordPiece", "vocab": {"a": 0}}},
    {"pre_tokenizer": BYTES | {"add_prefix_space": True}},
    {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, {"type": "Digits", "individual_digits": True}]}},
    {"normalizer": {"type": "Lowercase"}},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_other_tokenizers_are_refused(foreign):
    with pytest.raises(UsageError, match="is not a byte-level byte-pair one"):
        BytePairTokenizer(samples.changed(DESCRIPTIONS["gpt2"], **foreign))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": {}}', '{"model": {"vocab": {}}, "pre_tokenizer": null}'])
def test_what_describes_no_tokenizer_is_refused(text):
    with pytest.raises(UsageError, match="no description of a byte-pair tokenizer"):
        BytePairTokenizer(text)


def test_what_the_package_cannot_use_is_refused_when_it_is_used():
    values = json.loads(DESCRIPTIONS["gpt2"])
    values["model"]["merges"] = [["no", "such"]]
    tokenizer = BytePairTokenizer(json.dumps(values))
    with pytest.raises(UsageError, match=r"the package tokenizers cannot use this tokenizer: .*no"):
        tokenizer.encode("a")
    with pytest.raises(UsageError, match=r"holds '\\udcff', which is no character"):
        TOKENIZERS["gpt2"].encode("a\udcff")


def test_the_package_is_needed_only_to_encode_and_decode(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tokenizer = BytePairTokenizer(DESCRIPTIONS["gpt2"])
    assert tokenizer.V == 300 and tokenizer_from_dict(tokenizer.to_dict()).V == 300
    with pytest.raises(MissingExtraError) as raised:
        tokenizer.encode("a")
    assert str(raised.value).endswith(install_command("pretrained"))
