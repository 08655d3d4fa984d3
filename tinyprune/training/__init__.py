"""Training: optimizers, schedules, the loop, checkpoints and evaluation."""
