"""Sequential repair: the first block by brute force, later ones by what they bring, and what needs no repair."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from small import backend_with, read, small_config, small_model

from tinyprune.errors import UsageError
from tinyprune.method.masks import with_parts
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import RIDGES, blocks_of, refitted
from tinyprune.model.blocks import norm_forward
from tinyprune.model.parts import Parts
from tinyprune.pretrained.gguf import rounded, same

KINDS = {kind: {} for kind in ("all-attention", "head networks", "transformer-xl", "gpt2", "llama")}
KINDS["units"] = {"U": 2, "F": 8}
# These positions are of a kind that nothing but the model's engine knows.
KINDS["new positions"] = {"M": 0, "mask": "causal"}
TEXT = np.random.default_rng(4).integers(0, 11, 16 * 5 * 9)


def slopes(x: np.ndarray, P: None) -> tuple:
    return x * np.linspace(1, 3, x.shape[1])[:, None] + np.arange(x.shape[1])[:, None], None


def pair(kind: str, L: int = 2, **options) -> tuple:
    """A whole model, and it without some heads and blocks of units."""
    name = {"units": "llama", "new positions": "transformer-xl"}.get(kind, kind)
    whole = small_model(small_config(name, L=L, **KINDS[kind] | options))
    if kind == "new positions":
        whole.ops = backend_with(positions_forward=slopes)
    mask = [np.arange(count) != 1 for count in Parts(whole.config).counts]
    return whole, remove_closed_heads(with_parts(whole, mask))


def distance(a, b) -> float:
    ids = TEXT[:300].reshape(-1, a.config.T)
    return float(((a.log_p(ids) - b.log_p(ids)) ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_block_is_the_best_fit_of_one_of_the_ridges(kind):
    whole, smaller = pair(kind, L=1, M=0, mask="causal")
    got = refitted(whole, smaller, TEXT)
    rows = min(8, len(TEXT) // (5 * (T := whole.config.T)))
    count = len(TEXT) // (rows * T)
    ids = TEXT[: rows * count * T].reshape(rows, count, T).swapaxes(0, 1).reshape(-1, T)
    made = [x.forward(ids)[2].attention_blocks[0].attention.o.reshape(len(ids) * T, -1) for x in (whole, smaller)]
    models = zip(made, (whole, smaller), strict=True)
    y, now = (o @ model.params["layers.0.Wo"] + model.params.get("layers.0.bo", 0) for o, model in models)
    if (b := smaller.params.get("layers.0.bo")) is not None:
        made[1] = np.hstack([made[1], np.ones((len(y), 1))])
    # The length of the stream decides about weights.
    ((stream, _),) = blocks_of(whole, [whole.enter(ids)[0]], 0, False)
    root = 1 / np.sqrt((stream**2).mean(-1)).reshape(-1, 1)
    X, R = root * made[1], root * (y - now)
    change = got.params["layers.0.Wo"] - smaller.params["layers.0.Wo"]
    change = change if b is None else np.vstack([change, got.params["layers.0.bo"] - b])
    found = []
    for ridge in RIDGES:
        A = np.vstack([X, np.sqrt(ridge * (X**2).sum() / X.shape[1]) * np.eye(X.shape[1])])
        found.append(np.linalg.lstsq(A, np.vstack([R, np.zeros((X.shape[1], y.shape[1]))]), rcond=None)[0])
    assert min(np.abs(change - x).max() for x in found) < 1e-9 and np.abs(change).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_repaired_is_nearer_to_the_whole_model(kind):
    whole, smaller = pair(kind, L=3)
    before = {name: x.copy() for name, x in smaller.params.items()}
    assert distance(refitted(whole, smaller, TEXT), whole) < 0.9 * distance(smaller, whole)
    assert all(np.array_equal(smaller.params[name], x) for name, x in before.items())


def test_later_blocks_make_up_for_what_rounding_takes_from_those_before():
    """In a file with 4 bits: fitted matrices have its numbers, and all together are nearer than if rounded at last."""
    whole, smaller = pair("llama", L=6, D=32, head_width=32)
    stored = partial(rounded, kind="q4_1")
    found, plain = refitted(whole, smaller, TEXT, stored), refitted(whole, smaller, TEXT)
    fitted = [name for name, x in found.params.items() if not np.array_equal(x, smaller.params[name])]
    assert fitted and all(same(found.params[name], stored(found.params[name])) for name in fitted)
    after = {name: stored(x) if name in fitted else x for name, x in plain.params.items()}
    assert distance(found, whole) < distance(replace(plain, params=after), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_read_with_the_memory_of_those_before(kind):
    model = pair(kind)[1]
    ids, T = TEXT[:40].reshape(2, 20), model.config.T
    streams = [model.enter(ids[:, start : start + T])[0] for start in range(0, 20, T)]
    for i in range(2):
        for second in (False, True)[: 1 + (model.config.second is not None)]:
            streams = [y for y, _ in blocks_of(model, streams, i, second)]
    h, _ = norm_forward(np.concatenate(streams, 1), model.params, "ln", model.config, model.ops)
    np.testing.assert_allclose(h, read(model, ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_repair_changes_nothing(kind):
    whole, _ = pair(kind)
    same = refitted(whole, whole, TEXT)
    assert all(np.array_equal(same.params[name], x) for name, x in whole.params.items())


def test_a_layer_that_has_lost_all_heads_and_units_is_left_alone():
    whole = small_model(small_config("llama", **KINDS["units"]))
    counts = Parts(whole.config).counts
    mask = [np.arange(count) > 9 * (i % 2) for i, count in enumerate(counts)]
    smaller = remove_closed_heads(with_parts(whole, mask))
    assert 0 in Parts(smaller.config).counts
    assert distance(refitted(whole, smaller, TEXT), whole) < distance(smaller, whole)


def test_what_cannot_be_repaired_is_refused():
    whole, smaller = pair("all-attention")
    with pytest.raises(UsageError, match="at least 5 segments of 5 tokens to read, got 24 tokens"):
        refitted(whole, smaller, TEXT[:24])
    with pytest.raises(ValueError, match="no gates"):
        refitted(whole, with_parts(whole), TEXT)
    with pytest.raises(ValueError, match="the same L, D, T, M and V"):
        refitted(whole, pair("all-attention", L=3)[1], TEXT)
