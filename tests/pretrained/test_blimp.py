"""Minimal pairs: log-probabilities of sentences against those of whole texts, counts by hand, what is refused."""

import json
import re

import numpy as np
import pytest
import samples
from scipy.stats import binomtest

from tinyprune.data import ByteTokenizer
from tinyprune.errors import UsageError
from tinyprune.pretrained.blimp import KEYS, SENTENCES, accuracies, accuracy, blimp, read_pairs, sentence_log_p
from tinyprune.training.evaluation import evaluate

SAID = ["the cat saw the dog", "the dog", "they're gone", "for i in"]


def pair(good="the cat", bad="the cats", uid="a", field="syntax", phenomenon="islands"):
    return dict(zip(KEYS, (uid, field, phenomenon, good, bad), strict=True))


def write(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def test_a_sentence_is_read_after_the_token_between_documents():
    model, tokenizer = samples.random_model(samples.LLAMA)
    assert tokenizer.decode([tokenizer.beginning]) == "<|end|>"
    found = sentence_log_p(model, tokenizer, SAID)
    for sentence, log_p in zip(SAID, found, strict=True):
        ids = np.r_[tokenizer.beginning, tokenizer.encode(sentence)]
        alone = evaluate(model, ids, 0)
        assert log_p == pytest.approx(-alone.nats_per_token * (len(ids) - 1), rel=1e-5)
    assert len({round(float(x), 3) for x in found}) == len(SAID)
    # a model without such a token: the first one is given
    plain = ByteTokenizer()
    (log_p,) = sentence_log_p(model, plain, ["cat"])
    assert log_p == pytest.approx(-2 * evaluate(model, plain.encode("cat"), 0).nats_per_token, rel=1e-5)


def test_a_pair_is_right_if_the_good_sentence_is_the_likelier():
    model, tokenizer = samples.random_model(samples.LLAMA)
    a, b = sentence_log_p(model, tokenizer, SAID[1:3])
    pairs = [pair(SAID[1], SAID[2]), pair(SAID[2], SAID[1]), pair(SAID[1], SAID[1])]
    assert blimp(model, tokenizer, pairs).tolist() == [a > b, b > a, False]


def test_accuracies_by_hand():
    pairs = [pair(uid="a"), pair(uid="a"), pair(uid="b"), pair(uid="c", field="semantics", phenomenon="quantifiers")]
    found = accuracies(pairs, np.array([True, False, True, True]))
    numbers = {(r["level"], r["name"]): (r["accuracy"], r["pairs"]) for r in found}
    assert numbers == {
        ("all", ""): (3 / 4, 4),
        ("field", "syntax"): (2 / 3, 3),
        ("field", "semantics"): (1, 1),
        ("phenomenon", "islands"): (2 / 3, 3),
        ("phenomenon", "quantifiers"): (1, 1),
        ("paradigm", "a"): (1 / 2, 2),
        ("paradigm", "b"): (1, 1),
        ("paradigm", "c"): (1, 1),
    }


@pytest.mark.parametrize(("right", "n"), [(35, 60), (0, 5), (100, 100)])
def test_the_interval_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    found = accuracy(np.arange(n) < right)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)


BAD = [
    ("", "has no pairs"),
    ("{", "line 1 of .* is no JSON"),
    ("[]", "line 1 of .* must have UID, .*not empty; got UID None"),
    (json.dumps({key: "x" for key in KEYS if key != SENTENCES[1]}), "line 1 .*got sentence_bad None"),
    (json.dumps(dict.fromkeys(KEYS, "x") | {SENTENCES[0]: " "}), "line 1 .*got sentence_good ' '"),
    (json.dumps(dict.fromkeys(KEYS, "x") | {"field": 3}), "line 1 .*got field 3"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_files_that_are_refused(line, message, tmp_path):
    with pytest.raises(UsageError) as raised:
        read_pairs(write(tmp_path / "pairs.jsonl", line))
    assert re.search(message, str(raised.value)) and "\n" not in str(raised.value)


def test_a_file_is_read_and_a_sentence_that_is_too_long_refused(tmp_path):
    model, tokenizer = samples.random_model(samples.LLAMA)
    assert read_pairs(write(tmp_path / "pairs.jsonl", pair(), pair(uid="b"))) == [pair(), pair(uid="b")]
    with pytest.raises(UsageError, match=r"cannot be read"):
        read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match=rf"must have 2 to {model.config.T + 1} tokens.*got \d+: 'the cat"):
        sentence_log_p(model, tokenizer, ["the cat saw " * 20])
