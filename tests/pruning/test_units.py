"""Blocks of feed-forward units: gated, chosen, repaired and removed as heads are, on one budget with them."""

import dataclasses

import numpy as np
import pytest
from small import read, small_config, small_model

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.model.counting import count_multiply_adds, count_parameters, count_parts, part_prices
from tinyprune.model.gates import by_layer, gate_names
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import GateObjective, add_gates, budget, hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance import CRITERIA, keep_within, with_heads, with_scored_gates
from tinyprune.pruning.importance.fits import read_fits
from tinyprune.pruning.importance.least_squares import search
from tinyprune.pruning.repair import repaired_from
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.evaluation import mean_loss

KINDS = ("transformer-xl", "gpt2", "llama")
TOKENS = np.random.default_rng(3).integers(0, 11, 60)
NAMES = gate_names(2, True)


def config_of(kind: str, **options) -> ModelConfig:
    """Two layers of three heads and four blocks of two units."""
    return small_config(kind, **{"F": 8, "U": 2} | options)


def gated_model(kind: str, gate: GateConfig, seed: int, **options) -> Transformer:
    """A model whose gates are open or closed by chance."""
    config = config_of(kind, **options)
    model = small_model(dataclasses.replace(config, U=0, blocks=(), block_ids=()), seed=seed)
    params = add_gates(model.params, config.parts, gate)
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
        opened = [np.flatnonzero(part).tolist() for part in open_heads(model)]
        assert [list(part) for part in smaller.config.part_ids] == opened
        np.testing.assert_allclose(read(smaller, ids), read(model, ids), rtol=1e-10, atol=1e-12)
        assert sum(x.size for x in smaller.params.values()) == count_parameters(smaller.config)
        again = ModelConfig.from_dict(smaller.config.to_dict())
        assert again == smaller.config
        if kind != "llama":  # whose key-value head goes with the last of three
            closed = ~np.concatenate(open_heads(model))
            for price, count in (("parameters", count_parameters), ("multiply-adds", count_multiply_adds)):
                saved = part_prices(model.config, price)[0][closed].sum()
                assert count(model.config) - count(smaller.config) == saved


def test_prices_of_a_whole_group_are_what_it_saves():
    config = config_of("llama", bias="layers")
    ids = {"heads": (3, 0), "head_ids": ((0, 1, 2), ()), "blocks": (4, 3), "block_ids": ((0, 1, 2, 3), (0, 1, 3))}
    smaller = dataclasses.replace(config, **ids)
    closed = np.repeat([False, True, False, True], (3, 3, 7, 1))
    for price, count in (("parameters", count_parameters), ("multiply-adds", count_multiply_adds)):
        prices, whole = part_prices(config, price)
        assert count(config) - count(smaller) == pytest.approx(prices[closed].sum())
        assert whole == sum(getattr(p, price if price == "parameters" else "multiply_adds_per_token")
                            for p in count_parts(config)[2:])  # fmt: skip
    assert part_prices(config, "cache")[0].tolist() == [2 * 4 / 3] * 6 + [0] * 8
    fewer = dataclasses.replace(smaller, heads=(2, 1), head_ids=((0, 2), (1,)))  # each reads as much, with fewer others
    assert part_prices(fewer, "cache") == (pytest.approx(np.array([4, 4, 8] + [0] * 7)), 16)


@pytest.mark.parametrize("kind", ["transformer-xl", "llama"])
@pytest.mark.parametrize("price", ["gates", "parameters", "multiply-adds", "cache"])
def test_the_stage_ends_within_its_share(price, kind):
    """No part that is closed would fit in the room that is left, but for keys and values that are shared."""
    gate = GateConfig(units=2, target_share=0.6, price=price, lr_multiplier=100.0, groups=price == "cache")
    model = small_model(small_config(kind, F=8), seed=1)
    gated, objective = with_new_gates(model, gate, 1)
    assert gated.config.U == 2 and isinstance(objective, GateObjective)
    rng = np.random.default_rng(0)
    for name in NAMES:
        gated.params[name] = rng.uniform(-4, 1, gated.params[name].shape)
    before = np.concatenate([gated.params[name] for name in NAMES])
    hit_target(gated)
    stay, (prices, whole) = np.concatenate(open_heads(gated)), part_prices(gated.config, price)
    room = 0.6 * whole - part_prices(remove_closed_heads(gated).config, price)[1]
    assert -1e-6 * whole < room < min(prices[~stay])
    for alike in (prices == x for x in set(prices) if price != "cache"):  # of parts with one price the lower ones close
        assert before[stay & alike].min() > before[~stay & alike].max()
    weights, _ = budget(gated.config, gate)
    assert weights is None if price == "gates" else weights.mean() == pytest.approx(1)
    with pytest.raises(UsageError, match=r"gate\.target_share must be at least 0\.\d+, for so much"):
        with_new_gates(model, dataclasses.replace(gate, target_share=0.0, price="parameters"), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_criteria_score_blocks(kind):
    model = small_model(config_of(kind), seed=2)
    rng = np.random.default_rng(0)
    for name in ("random", "magnitude", "michel", "leave-one-out", "output-difference", "fluctuation"):
        assert [part.size for part in CRITERIA[name](model, TOKENS, rng)] == [3, 3, 4, 4], name
    scores = CRITERIA["leave-one-out"](model, TOKENS, rng)
    mask = [np.ones(n, bool) for n in model.config.parts]
    mask[3][1] = False
    lost = mean_loss(with_heads(model, mask), TOKENS) - mean_loss(with_heads(model), TOKENS)
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
    model = small_model(dataclasses.replace(config_of(kind), U=0, blocks=(), block_ids=(), kv_heads=0), seed=2)
    gate = GateConfig(units=2, target_share=0.6, price=price, criterion="magnitude")
    gated = with_scored_gates(model, gate, lambda model: CRITERIA["magnitude"](model, TOKENS, None))
    weights, target = budget(gated.config, gate)
    scores = CRITERIA["magnitude"](dataclasses.replace(model, config=gated.config), TOKENS, None)
    expected = keep_within(scores, np.ones(14) if weights is None else weights, target)
    assert all(np.array_equal(a, b) for a, b in zip(open_heads(gated), expected, strict=True))
    assert {float(x) for gates in gated.gates() for x in gates.values} == {0.0, 1.0} and not gated.gate.output_scaling
    with pytest.raises(UsageError, match=r"gate\.criterion needs gate\.target_heads or gate\.target_share"):
        GateConfig(criterion="magnitude")


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_another_can_make_up_for_is_found_and_repaired(kind):
    """Block 2 of layer 0 has the units of block 0: nothing is lost without it, and W2 is fitted to that."""
    model = small_model(config_of(kind), seed=4)
    for name in ("W1", "Wg", "b1"):
        if (x := model.params.get(f"layers.0.ffn.{name}")) is not None:
            x[..., 4:6] = x[..., 0:2]
    prices, _ = part_prices(model.config, "parameters")
    mask = search(read_fits(model, TOKENS), prices.sum() - prices[-1], prices)
    gone = [np.flatnonzero(~part).tolist() for part in mask]
    assert gone in ([[], [], [2], []], [[], [], [0], []])
    repaired = remove_closed_heads(repaired_from(model, mask, read_fits(model, TOKENS)))
    assert mean_loss(repaired, TOKENS) == pytest.approx(mean_loss(model, TOKENS), rel=1e-4)
    assert abs(mean_loss(with_heads(model, mask), TOKENS) / mean_loss(model, TOKENS) - 1) > 5e-3


def test_scores_are_weighed_by_prices():
    """The best by price that fits, then cheaper ones that still fit."""
    scores = [np.array([6.0, 5.0]), np.array([2.0, 1.0, 0.5])]
    prices = np.array([3.0, 2.0, 1.0, 1.0, 1.0])  # scores by price: 2, 2.5, 2, 1, 0.5
    for allowed, expected in ((1, [0, 0, 1, 0, 0]), (2, [0, 1, 0, 0, 0]), (4, [0, 1, 1, 1, 0]), (8, [1] * 5)):
        mask = keep_within(scores, prices, allowed)
        assert np.concatenate(mask).tolist() == expected and [part.size for part in mask] == [2, 3]
    assert [part.tolist() for part in by_layer(np.arange(5), (2, 3))] == [[0, 1], [2, 3, 4]]
