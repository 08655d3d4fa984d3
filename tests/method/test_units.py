"""Blocks of feed-forward units: gated, chosen, repaired and removed as heads are, on one budget with them."""

import dataclasses

import numpy as np
import pytest
from small import read, small_config, small_model

from tinyprune.config import ChooseConfig, GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.method.choose import open_best
from tinyprune.method.criteria import CRITERIA
from tinyprune.method.fits import read_fits
from tinyprune.method.gates import GateObjective, add_gates, budget, hit_target, in_parts, open_parts, with_gates
from tinyprune.method.least_squares import search
from tinyprune.method.masks import keep_within, with_parts
from tinyprune.method.recipe import Recipe
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import repaired
from tinyprune.model.counting import count_multiply_adds, count_parameters, count_parts
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.training.evaluation import mean_loss

KINDS = ("transformer-xl", "gpt2", "llama")
TOKENS = np.random.default_rng(3).integers(0, 11, 60)
NAMES = [f"layers.{i}.{kind}" for kind in ("log_alpha", "ffn.log_alpha") for i in range(2)]


def config_of(kind: str, **options) -> ModelConfig:
    """Two layers of three heads and four blocks of two units."""
    return small_config(kind, **{"F": 8, "U": 2} | options)


def gated_model(kind: str, gate: GateConfig, seed: int, **options) -> Transformer:
    """A model whose gates are open or closed by chance."""
    config = config_of(kind, **options)
    model = small_model(dataclasses.replace(config, U=0, blocks=(), block_ids=()), seed=seed)
    params = add_gates(model.params, config, gate)
    rng = np.random.default_rng(seed)
    for name in NAMES:
        params[name] = np.where(rng.random(params[name].shape) < 0.5, -4.0, rng.uniform(0.1, 2, params[name].shape))
    return Transformer(config, params, gate)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_removal_changes_no_logit_and_saves_what_the_parts_cost(kind, hard):
    ids = np.random.default_rng(5).integers(0, 11, (2, 12))
    for seed in range(12):
        model = gated_model(kind, GateConfig(hard=hard), seed)
        smaller = remove_closed_heads(model)
        opened = [np.flatnonzero(part).tolist() for part in open_parts(model)]
        assert [list(part) for part in Parts(smaller.config).ids] == opened
        np.testing.assert_allclose(read(smaller, ids), read(model, ids), rtol=1e-10, atol=1e-12)
        assert sum(x.size for x in smaller.params.values()) == count_parameters(smaller.config)
        again = ModelConfig.from_dict(smaller.config.to_dict())
        assert again == smaller.config
        if kind != "llama":  # whose key-value head goes with the last of three
            closed = ~np.concatenate(open_parts(model))
            for price, count in (("parameters", count_parameters), ("multiply-adds", count_multiply_adds)):
                saved = Parts(model.config).prices(price)[0][closed].sum()
                assert count(model.config) - count(smaller.config) == saved


def test_prices_of_a_whole_group_are_what_it_saves():
    config = config_of("llama", bias="layers")
    ids = {"heads": (3, 0), "head_ids": ((0, 1, 2), ()), "blocks": (4, 3), "block_ids": ((0, 1, 2, 3), (0, 1, 3))}
    smaller = dataclasses.replace(config, **ids)
    closed = np.repeat([False, True, False, True], (3, 3, 7, 1))
    for price, count in (("parameters", count_parameters), ("multiply-adds", count_multiply_adds)):
        prices, whole = Parts(config).prices(price)
        assert count(config) - count(smaller) == pytest.approx(prices[closed].sum())
        key = price if price == "parameters" else "multiply_adds_per_token"
        assert whole == sum(getattr(part, key) for part in count_parts(config)[2:])
    assert Parts(config).prices("cache")[0].tolist() == [2 * 4 / 3] * 6 + [0] * 8
    # Each head reads as much as before, with fewer others.
    fewer = dataclasses.replace(smaller, heads=(2, 1), head_ids=((0, 2), (1,)))
    assert Parts(fewer).prices("cache") == (pytest.approx(np.array([4, 4, 8] + [0] * 7)), 16)


@pytest.mark.parametrize("kind", ["transformer-xl", "llama"])
@pytest.mark.parametrize("price", ["gates", "parameters", "multiply-adds", "cache"])
def test_the_stage_ends_within_its_share(price, kind):
    """No part that is closed would fit in the room that is left, but for keys and values that are shared."""
    gate = GateConfig(lr_multiplier=100.0, groups=price == "cache")
    how = ChooseConfig(units=2, target_share=0.6, price=price)
    model = small_model(small_config(kind, F=8), seed=1)
    gated, objective = with_gates(model, Recipe(how, gate), 1)
    assert gated.config.U == 2 and isinstance(objective, GateObjective)
    rng = np.random.default_rng(0)
    for name in NAMES:
        gated.params[name] = rng.uniform(-4, 1, gated.params[name].shape)
    before = np.concatenate([gated.params[name] for name in NAMES])
    hit_target(gated, how)
    stay, (prices, whole) = np.concatenate(open_parts(gated)), Parts(gated.config).prices(price)
    room = 0.6 * whole - Parts(remove_closed_heads(gated).config).prices(price)[1]
    assert -1e-6 * whole < room < min(prices[~stay])
    # Of parts with one price the lower ones close.
    for alike in (prices == x for x in set(prices) if price != "cache"):
        assert before[stay & alike].min() > before[~stay & alike].max()
    weights, _ = budget(gated.config, how)
    assert weights is None if price == "gates" else weights.mean() == pytest.approx(1)
    with pytest.raises(UsageError, match=r"choose\.target_share must be at least 0\.\d+, for so much"):
        nothing = dataclasses.replace(how, target_share=0.0, price="parameters")
        with_gates(model, Recipe(nothing, gate), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_criteria_score_blocks(kind):
    model = small_model(config_of(kind), seed=2)
    rng = np.random.default_rng(0)
    for name in ("random", "magnitude", "michel", "leave-one-out", "output-difference", "fluctuation", "activations"):
        assert [part.size for part in CRITERIA[name](model, TOKENS, rng)] == [3, 3, 4, 4], name
    scores = CRITERIA["leave-one-out"](model, TOKENS, rng)
    mask = Parts(model.config).full(True)
    mask[3][1] = False
    lost = mean_loss(with_parts(model, mask), TOKENS) - mean_loss(with_parts(model), TOKENS)
    assert scores[3][1] == pytest.approx(lost, rel=1e-12)
    matrices = ("W1", "Wg", "W2") if kind == "llama" else ("W1", "W2")
    parts = [np.swapaxes(model.params[f"layers.1.ffn.{W}"], 0, W != "W2")[2:4] for W in matrices]
    inner = np.linalg.norm(np.concatenate(parts[:-1]))
    assert CRITERIA["magnitude"](model, TOKENS, rng)[3][1] == pytest.approx(inner * np.linalg.norm(parts[-1]))
    with pytest.raises(UsageError, match="confidence is that of heads"):
        CRITERIA["confidence"](model, TOKENS, rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("price", ["gates", "parameters"])
def test_gates_open_by_scores_for_their_price(kind, price):
    plain = dataclasses.replace(config_of(kind), U=0, blocks=(), block_ids=(), kv_heads=0)
    model = small_model(plain, seed=2)
    how = ChooseConfig(by="magnitude", units=2, target_share=0.6, price=price)
    parted = in_parts(model, how)
    scores = CRITERIA["magnitude"](parted, TOKENS, None)
    gated = open_best(parted, Recipe(how), scores)
    weights, target = budget(gated.config, how)
    expected = keep_within(scores, np.ones(14) if weights is None else weights, target)
    assert all(np.array_equal(a, b) for a, b in zip(open_parts(gated), expected, strict=True))
    assert {float(x) for gates in gated.gates() for x in gates.values} == {0.0, 1.0}
    assert not gated.gate.output_scaling
    with pytest.raises(UsageError, match=r"choose\.by needs choose\.target_heads or choose\.target_share"):
        ChooseConfig(by="magnitude")


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_within_layers_leave_the_same_share_of_each(kind, share):
    """However large a layer's scores are: it keeps its best heads and its best blocks."""
    model = small_model(config_of(kind, L=4, F=10, D=16, H=4, T=6, kv_heads=0), seed=2)
    scores = CRITERIA["activations"](model, TOKENS, None)
    how = ChooseConfig(by="activations", units=2, target_share=share, price="parameters")
    kept = open_parts(open_best(model, Recipe(how), scores))
    for own in ([kept[i].sum() for i in range(4)], [kept[i].sum() for i in range(4, 8)]):
        assert max(own) - min(own) <= 1
    for own, stays in zip(scores, kept, strict=True):
        assert own[stays].min(initial=np.inf) > own[~stays].max(initial=-np.inf)
    prices, whole = Parts(model.config).prices("parameters")
    room = share * whole - (whole - prices[~np.concatenate(kept)].sum())
    assert 0 <= room < prices.max()
    larger = [own * 10.0**i for i, own in enumerate(scores)]
    for other in (how, dataclasses.replace(how, by="michel", scope="layer")):
        again = open_parts(open_best(model, Recipe(other), larger))
        assert all(np.array_equal(a, b) for a, b in zip(again, kept, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_another_can_make_up_for_is_found_and_repaired(kind):
    """Block 2 of layer 0 has the units of block 0: nothing is lost without it, and W2 is fitted to that."""
    model = small_model(config_of(kind), seed=4)
    for name in ("W1", "Wg", "b1"):
        if (x := model.params.get(f"layers.0.ffn.{name}")) is not None:
            x[..., 4:6] = x[..., 0:2]
    prices, _ = Parts(model.config).prices("parameters")
    mask = search(read_fits(model, TOKENS), prices.sum() - prices[-1], prices)
    gone = [np.flatnonzero(~part).tolist() for part in mask]
    assert gone in ([[], [], [2], []], [[], [], [0], []])
    fitted = remove_closed_heads(repaired(model, mask, read_fits(model, TOKENS)))
    assert mean_loss(fitted, TOKENS) == pytest.approx(mean_loss(model, TOKENS), rel=1e-4)
    assert abs(mean_loss(with_parts(model, mask), TOKENS) / mean_loss(model, TOKENS) - 1) > 5e-3


def test_scores_are_weighed_by_prices():
    """The best by price that fits, then cheaper ones that still fit."""
    scores = [np.array([6.0, 5.0]), np.array([2.0, 1.0, 0.5])]
    prices = np.array([3.0, 2.0, 1.0, 1.0, 1.0])  # scores by price: 2, 2.5, 2, 1, 0.5
    for allowed, expected in ((1, [0, 0, 1, 0, 0]), (2, [0, 1, 0, 0, 0]), (4, [0, 1, 1, 1, 0]), (8, [1] * 5)):
        mask = keep_within(scores, prices, allowed)
        assert np.concatenate(mask).tolist() == expected and [part.size for part in mask] == [2, 3]
    config = config_of("gpt2", heads=(2, 1), head_ids=((0, 1), (2,)), blocks=(0, 2), block_ids=((), (1, 3)))
    assert [own.tolist() for own in Parts(config).split(np.arange(5))] == [[0, 1], [2], [], [3, 4]]
