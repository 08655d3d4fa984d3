"""Training: the step and the loop around it, optimizers, schedules, checkpoints, evaluation, warm-up."""
