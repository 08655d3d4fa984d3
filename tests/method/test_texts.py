"""The texts that the method reads beside the run's own."""

import dataclasses

import numpy as np
import pytest
from command import write_text
from small import small_config, small_model

from tinyprune.config import DataConfig, RunConfig
from tinyprune.data import load_text
from tinyprune.errors import UsageError
from tinyprune.method import texts as module
from tinyprune.method.texts import NEAR, STRETCH, Texts, repeats


def test_random_tokens_come_again_at_a_distance_of_their_own():
    n, V = 10 * STRETCH + 7, 50_000
    tokens = repeats(V, n, np.random.default_rng(0))
    assert tokens.shape == (n,) and 0 <= tokens.min() < 200 and V - 200 < tokens.max() < V
    distances = []
    for stretch in tokens[: 10 * STRETCH].reshape(10, STRETCH):
        (again,) = np.nonzero(stretch == stretch[0])
        distances.append(again[1])
        np.testing.assert_array_equal(stretch[again[1] :], stretch[: -again[1]])
        assert len(np.unique(stretch)) > 0.98 * again[1]
    assert NEAR <= min(distances) < max(distances) <= STRETCH // 2 and len(set(distances)) > 5
    np.testing.assert_array_equal(tokens, repeats(V, n, np.random.default_rng(0)))


def test_all_that_the_method_reads_has_its_share_of_repeats(tmp_path):
    text = load_text(DataConfig(corpus=str(write_text(tmp_path))))
    config = RunConfig(texts="run,repeats").with_options({"repair.tokens": 4000})
    texts = Texts.of(config, text)
    own, made = texts.tokens()
    assert len(made) == 2000 and made.max() < text.tokenizer.V and len(own) == len(text.train)
    np.testing.assert_array_equal(made, texts.tokens()[1])
    np.testing.assert_array_equal(texts.to_repair(4000, 8)[-2000:], made)
    rows = texts.segments("heal", config.heal, 8).batch(0)[0]
    windows = {tuple(x) for x in np.lib.stride_tricks.sliding_window_view(np.r_[made, made], 8).tolist()}
    assert sum(tuple(row) in windows for row in rows.tolist()) >= config.heal.B // 2 - 1


def test_a_text_that_is_made_needs_to_know_how_long_it_is():
    with pytest.raises(UsageError, match=r"repair.tokens must be more than 0 where a text is made: self or repeats"):
        RunConfig.from_dict({"texts": "run,repeats"})


def test_a_model_writes_once_for_all_stages(tmp_path, monkeypatch):
    """What it has written is kept for this model and this length alone, and a damaged file does no harm."""
    monkeypatch.setattr(module, "cache_directory", lambda: tmp_path)
    text = load_text(DataConfig(corpus=str(write_text(tmp_path))))
    model = small_model(small_config("llama", V=text.tokenizer.V), dtype=np.float32)
    calls, write = [], Texts.write
    monkeypatch.setattr(Texts, "write", lambda self, whole: calls.append(self.own) or write(self, whole))

    def written(whole, own=20):
        return Texts(text, ("run", "self"), own).tokens(whole)[1]

    first = written(model)
    np.testing.assert_array_equal(written(model), first)
    assert calls == [20] and len(first) == 20
    other = dataclasses.replace(model, params=model.params | {"embedding": -model.params["embedding"]})
    assert not np.array_equal(written(other), first) and len(written(model, 30)) == 30
    assert calls == [20, 20, 30]
    for damaged in (b"no array", b""):
        for path in (tmp_path / "written").iterdir():
            path.write_bytes(damaged)
        np.testing.assert_array_equal(written(model), first)
        np.testing.assert_array_equal(written(model), first)
    assert calls == [20, 20, 30, 20, 20]
