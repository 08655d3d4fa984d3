"""The texts that the method reads beside the run's own."""

import numpy as np
import pytest
from command import write_text

from tinyprune.config import DataConfig, RunConfig
from tinyprune.data import load_text
from tinyprune.errors import UsageError
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
