"""Learning rate and warm-up: the ends, the middle, and no jumps between."""

import math

import pytest

from tinyprune.config import TrainConfig
from tinyprune.training.schedules import learning_rate, linear_warmup


def rates(**options) -> list[float]:
    config = TrainConfig(lr=0.5, **options)
    return [learning_rate(config, step) for step in range(config.steps)]


def test_warmup_then_cosine():
    curve = rates(steps=14, warmup=4, lr_min=0.1)
    assert curve[:4] == [0.125, 0.25, 0.375, 0.5] and curve[-1] == 0.1
    # Step 8 is 5 of the 10 steps from the peak to the end.
    assert math.isclose(curve[8], 0.3)
    assert math.isclose(curve[5], 0.1 + 0.4 * (1 + math.cos(0.2 * math.pi)) / 2)


def test_without_warmup_it_starts_at_the_top():
    curve = rates(steps=11)
    assert curve[0] == 0.5 and curve[10] == 0.0 and curve == sorted(curve, reverse=True)


def test_constant():
    assert rates(steps=5, warmup=2, schedule="constant", lr_min=0.1) == [0.25, 0.5, 0.5, 0.5, 0.5]
    assert rates(steps=1) == [0.5]


@pytest.mark.parametrize("warmup", [4, 5, 100])
def test_warmup_as_long_as_the_stage_or_longer(warmup):
    assert rates(steps=4, warmup=warmup) == [0.5 * (step + 1) / warmup for step in range(4)]


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_after_the_last_step(steps):
    assert learning_rate(TrainConfig(steps=steps, lr_min=0.01), 11) == 0.01


def test_linear_warmup():
    assert [linear_warmup(step, 4) for step in range(7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert linear_warmup(0, 0) == 1.0
