"""Least-squares problems of blocks, repairs and the search for heads, against brute force."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from small import small_config, small_model

from tinyprune.errors import UsageError
from tinyprune.method.criteria import CRITERIA
from tinyprune.method.fits import BlockFit, read_fits
from tinyprune.method.least_squares import search
from tinyprune.method.masks import with_parts
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import repaired

LONG = np.random.default_rng(4).integers(0, 11, 16 * 5 * 3 + 1)  # 16 streams of three segments
KINDS = ("all-attention", "head networks")
STAY = [np.array([True, False, True]), np.array([False, False, True])]


def outputs_of(kind: str) -> tuple:
    """A model; what its blocks multiply, (n, H·width + 1) for each; and W̃, all gathered by hand."""
    model = small_model(small_config(kind))
    memory, found = None, {}
    ids = LONG[:-1].reshape(16, 3, 5).swapaxes(0, 1)
    for segment in ids:
        _, memory, cache = model.forward(segment, memory)
        for i in range(2):
            o = cache.attention_blocks[i].attention.o
            found.setdefault((i, "Wo", "bo"), []).append(o.reshape(80, 12))
            if kind == "head networks":
                found.setdefault((i, "net.pv", "net.bo"), []).append(cache.second_blocks[i].inside.r.reshape(80, 18))
    blocks = {}
    for (i, W, b), parts in found.items():
        X = np.hstack([np.vstack(parts), np.ones((240, 1))])
        matrix = model.params[f"layers.{i}.{W}"].reshape(-1, 12)
        blocks[i, W, b] = X, np.vstack([matrix, model.params[f"layers.{i}.{b}"]])
    return model, blocks


def best_fit(X: np.ndarray, W: np.ndarray, rows: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Solve a block's problem with the rows that may be used by `lstsq`: a row of √λ for each that has the penalty."""
    size = len(W)
    ridge = np.sqrt(penalty) * np.eye(size)[:-1]
    A = np.vstack([X, ridge])
    fitted = np.zeros_like(W)
    fitted[rows] = np.linalg.lstsq(A[:, rows], A @ W, rcond=None)[0]
    return fitted, ((A @ (W - fitted)) ** 2).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_repaired_weights_are_the_best_fit(kind):
    model, blocks = outputs_of(kind)
    new = repaired(model, STAY, read_fits(model, LONG))
    read = {i: iter(layer) for i, layer in enumerate(read_fits(model, LONG))}
    for (i, W, b), (X, given) in blocks.items():
        block, width = next(read[i]), (len(given) - 1) // 3
        penalty = 1e-4 * (X[:, :-1] ** 2).sum(0).mean()
        rows = np.append(np.repeat(STAY[i], width), True)
        expected, cost = best_fit(X, given, rows, penalty)
        got = np.vstack([new.params[f"layers.{i}.{W}"].reshape(-1, 12), new.params[f"layers.{i}.{b}"]])
        assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
        assert block.cost(STAY[i]) == pytest.approx(cost, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_fluctuation_is_the_variance_of_outputs_times_their_weights(kind):
    model, blocks = outputs_of(kind)
    for i, score in enumerate(CRITERIA["fluctuation"](model, LONG, np.random.default_rng(0))):
        expected = np.zeros(3)
        for (layer, _, _), (X, given) in blocks.items():
            if layer == i:
                parts = X[:, :-1].var(0) * (given[:-1] ** 2).sum(1)
                expected += parts.reshape(3, -1).sum(1)
        assert_allclose(score, (expected - expected.mean()) / expected.std(), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_repair_changes_nothing(kind):
    model = small_model(small_config(kind))
    same = repaired(model, [np.ones(3, bool)] * 2, read_fits(model, LONG))
    for name, value in model.params.items():
        assert_allclose(same.params[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repaired_model_is_nearer_to_the_whole_one_and_removal_is_exact(kind):
    model, ids = small_model(small_config(kind)), LONG[:240].reshape(48, 5)
    stay = [STAY[0], np.ones(3, bool)]
    models = model, with_parts(model, stay), repaired(model, stay, read_fits(model, LONG))
    whole, closed, fitted = (m.log_probabilities(m.forward(ids)[0]) for m in models)
    assert ((closed - whole) ** 2).mean() > ((fitted - whole) ** 2).mean() > 0
    smaller = remove_closed_heads(models[2])
    assert_allclose(smaller.log_probabilities(smaller.forward(ids)[0]), fitted, rtol=1e-11)


def random_blocks(rng: np.random.Generator, layers: int, heads: int) -> list[list[BlockFit]]:
    """Blocks of heads that can partly stand in for each other."""
    made = []
    for _ in range(layers):
        X = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 2 * heads)) + rng.standard_normal((40, 2 * heads))
        X = np.hstack([X, np.ones((40, 1))])
        made.append([BlockFit(X.T @ X, rng.standard_normal((2 * heads + 1, 5)), heads) for _ in range(2)])
    return made


def test_the_search_ends_where_no_exchange_is_better_and_beats_greedy_removal():
    gains = []
    for seed in range(8):
        layers = random_blocks(np.random.default_rng(seed), 2, 4)

        def cost(mask: np.ndarray, layers: list = layers) -> float:
            return sum(b.cost(own) for blocks, own in zip(layers, mask.reshape(2, 4), strict=True) for b in blocks)

        found = np.concatenate(search(layers, 4))
        masks = [np.isin(np.arange(8), kept) for kept in itertools.combinations(range(8), 4)]
        neighbours = [mask for mask in masks if (mask != found).sum() == 2]
        assert found.sum() == 4 and len(neighbours) == 16
        assert cost(found) <= min(map(cost, neighbours))
        greedy = np.ones(8, bool)
        for _ in range(4):
            greedy = min((greedy & (np.arange(8) != h) for h in np.flatnonzero(greedy)), key=cost)
        gains.append(cost(greedy) - cost(found))
    assert min(gains) > -1e-9 and max(gains) > 0.1


def test_what_cannot_be_done_is_refused():
    model = small_model(small_config())
    with pytest.raises(UsageError, match="must have all its heads open"):
        read_fits(with_parts(model, STAY), LONG)
    with pytest.raises(UsageError, match="heads must be between 0 and the 6 there are, got 7"):
        search(read_fits(model, LONG), 7)
