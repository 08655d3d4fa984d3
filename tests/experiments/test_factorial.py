"""The factorial of the recipe: contrasts by hand, intervals against those of pairs, and the mixed model."""

import itertools
import math

import numpy as np
import pytest
from toy import row

from tinyprune.experiments.factorial import (
    FACTORS,
    MEANS,
    WITH,
    WITHOUT,
    arm_of,
    contrasts,
    effects,
    mixed_model,
    shares,
)
from tinyprune.experiments.intervals import difference
from tinyprune.experiments.methods import ARMS, CHOICES, FACTORIAL, arm_name
from tinyprune.experiments.pictures import plot_effects
from tinyprune.experiments.results import SPLITS

SPREAD = {"random": 0.02, "michel": 0.005, "gates": 0.005, "least-squares": 0.003}


def bits_of(choice, repair, distill):
    """What an arm needs: both parts together gain 0.01 less than each alone."""
    return 2.0 - 0.02 * CHOICES.index(choice) - 0.03 * repair - 0.05 * distill + 0.01 * (repair and distill)


def sample(seeds, spread=SPREAD):
    """Rows of all arms with 2 heads; each choice has a spread of its own."""
    rng, made = np.random.default_rng(3), []
    for seed, arm in itertools.product(range(seeds), ARMS):
        bits = bits_of(*arm) + 0.1 * seed + spread[arm[0]] * rng.normal()
        made += [row(arm_name(*arm), 2, seed, bits + more, split) for split, more in zip(SPLITS, (0, 0.2), strict=True)]
    return made


def test_every_effect_by_hand():
    means = np.array([bits_of(*arm) for arm in ARMS])
    found = {(factor, by, given): float(means @ contrast) for factor, by, given, contrast in contrasts()}
    assert len(found) == 3 * (3 + 4 + 4)
    for by, given in itertools.product(CHOICES, (WITHOUT, WITH, MEANS)):
        more = {WITHOUT: 0.0, WITH: 0.01, MEANS: 0.005}[given]
        assert found["repair", by, given] == pytest.approx(more - 0.03)
        assert found["distillation", by, given] == pytest.approx(more - 0.05)
        assert by == "random" or found["choice", by, given] == pytest.approx(-0.02 * CHOICES.index(by))
    for by in CHOICES[1:]:
        parts = shares(by)
        gained = [float(means @ parts[factor]) for factor in FACTORS]
        assert gained == pytest.approx([-0.02 * CHOICES.index(by), -0.025, -0.045])
        whole = arm_of(by, True, True) - arm_of("random", False, False)
        np.testing.assert_allclose(sum(parts.values()), whole, atol=1e-12)


def test_an_effect_of_one_pair_is_that_pair_and_the_picture_shows_it():
    rows = sample(5)
    records = effects(rows)
    found = {(r["factor"], r["by"], r["given"]): r for r in records}
    for of, method, reference in (
        (("choice", "michel", WITHOUT), "michel", "random"),
        (("repair", "gates", WITH), "gates-repaired-distilled", "gates-distilled"),
        (("distillation", "least-squares", WITHOUT), "least-squares-alone-distilled", "least-squares-alone"),
    ):
        pair = difference(rows, method, reference)
        assert {k: found[of][k] for k in ("difference", "low", "high", "p", "p_flip")} == pytest.approx(
            {k: pair[k] for k in ("difference", "low", "high", "p", "p_flip")}
        )
    told = [found[factor, "gates", "share"] for factor in FACTORS]
    assert sum(r["share"] for r in told) == pytest.approx(1)
    whole = difference(rows, "gates-repaired-distilled", "random")["difference"]
    assert [r["share"] for r in told] == pytest.approx([r["difference"] / whole for r in told])
    assert {r["share"] for r in found.values() if r["given"] != "share"} == {None}
    moved = [r | {name: r[name] + 1 for name in ("difference", "low", "high")} | {"heads_open": 3} for r in records]
    figure = plot_effects(records + moved)
    figure.draw_without_rendering()
    for axes, heads in zip(figure.axes, (2, 3), strict=True):
        assert len(axes.get_yticks()) == 3 + 4 + 4 and axes.get_title("left") == f"{heads} heads stay"
        for given, drawn in zip((WITHOUT, WITH), axes.containers, strict=True):
            expected = [r["difference"] + heads - 2 for r in records if r["given"] == given]
            assert sorted(drawn[0].get_xdata()) == pytest.approx(sorted(expected))


def test_the_mixed_model_gives_each_arm_its_own_variance():
    rows = sample(12)
    bits = {(r["method"], r["seed"]): r["bits_per_character"] + 0.1 for r in rows if r["split"] == "valid"}
    y = np.array([[bits[arm_name(*arm), seed] for arm in ARMS] for seed in range(12)])
    model = mixed_model(y)
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    for pair in (("random", "least-squares"), ("michel", "gates")):
        a, b = (arm_of(choice, False, False) for choice in pair)
        test = model.t_test((a - b)[None])
        assert float(test.effect[0]) == pytest.approx(y.mean(0) @ (a - b))
        expected = math.sqrt((rest.var(0, ddof=1) @ (a + b)) / 12)
        assert float(test.sd.item()) == pytest.approx(expected, rel=0.25)
    assert set(FACTORIAL) == {r["method"] for r in rows}
