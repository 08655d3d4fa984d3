"""Schedules: the learning rate and the weight of the L0 loss at each step.

Steps count from 0: `step` is the number of updates made before this one.
"""

import math

from tinyprune.config import TrainConfig


def linear_warmup(step: int, steps: int) -> float:
    """Return a factor that rises linearly from 0 at step 0 to 1 at step `steps` and stays there; 1 if `steps` is 0."""
    return min(step / steps, 1.0) if steps else 1.0


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of update `step` of `config.steps`.

        warm-up:   lr · (step + 1) / warmup                     so that the first update already has an effect
        constant:  lr
        cosine:    lr_min + (lr − lr_min) · (1 + cos(π·p)) / 2   p from 0 at the peak to 1 at the last step

    (Loshchilov & Hutter 2017, eq. 5, without restarts.) The peak, where the rate is `lr`, is the last step of the
    warm-up, or step 0 without one. A warm-up as long as the whole stage, or longer, fills it. After the last
    step the rate stays at `lr_min`.
    """
    peak = max(config.warmup - 1, 0)
    last = config.steps - 1
    if step <= peak or config.schedule == "constant":
        return config.lr * linear_warmup(step + 1, config.warmup)
    progress = min((step - peak) / (last - peak), 1.0) if last > peak else 1.0
    return config.lr_min + (config.lr - config.lr_min) * (1 + math.cos(math.pi * progress)) / 2
