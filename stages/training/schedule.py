"""Learning rate schedules, as factors of the peak."""

from __future__ import annotations

import math

from stages.training.config import TrainingConfig

COSINE_FLOOR = 0.02


def rate_factor(step: int, config: TrainingConfig) -> float:
    """Factor for step 0 .. num_steps - 1: a linear rise, then the recipe's schedule.

    A step is a fixed number of samples, `micro_batch_size` x `micro_batches_per_step`, and this is
    arithmetic on shares of the run, so neither accumulation nor ranks nor the micro-batch's size
    change it (ViLT's users met a schedule that accumulation condensed: ViLT#19). A rise from 0
    starts one step in: with a rate of 0 a step would be lost.
    """
    warmup_steps = config.warmup * config.num_steps
    if step < warmup_steps:
        start = config.warmup_from
        risen = step / warmup_steps if start else (step + 1) / (warmup_steps + 1)
        return start + (1 - start) * risen
    if config.schedule == "steps":
        return 0.1 ** sum(step >= share * config.num_steps for share in config.decay_at)
    if config.schedule == "linear":
        return (config.num_steps - step) / max(1.0, config.num_steps - warmup_steps)
    progress = (step - warmup_steps) / max(1.0, config.num_steps - warmup_steps)
    return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * progress)) / 2
