"""One optimizer step of a teacher's training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from boxless.errors import BoxlessError
from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.training.augmentation import step_random
from stages.detector.training.loss_scaling import LEAST, LossScale
from stages.detector.training.losses import detection_losses
from stages.detector.training.optimizer import set_learning_rate
from stages.detector.training.training_set import TrainingSet
from stages.distributed import Ranks

AUTOCAST = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What convolutions and linear layers compute in, by `teach.precision`."""


class TeachError(BoxlessError):
    """Training cannot start or continue; the text says what was got and what to do."""


def take_step(
    model: FasterRCNN,
    optimizer: torch.optim.Optimizer,
    training_set: TrainingSet,
    ranks: Ranks,
    scale: LossScale,
    step: int,
) -> dict[str, float]:
    """One optimizer step on the batch of `step`; returns its losses by name, their weighted sum
    and the L2 norm of the gradients before clipping, of all ranks. A collective.

    Raises TeachError, before the weights change, if one of these is not finite; in fp16 gradients
    may be so, and then leave the weights.
    """
    config = training_set.config
    batch = training_set.batch(step, ranks)
    precision = AUTOCAST[config.precision]
    with (
        torch.autocast(
            batch.pictures.device.type, precision, enabled=precision is not torch.float32
        ),
        _dropout_of(training_set, step, ranks),
    ):
        randoms = [step_random(training_set.seed, step, f"sample {key}") for key in batch.keys]
        losses = detection_losses(model, batch, config, randoms, ranks)
    weights = {"attribute": config.attribute_weight}
    total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    (total * scale.factor).backward()
    ranks.add_gradients(model.parameters())
    for parameter in model.parameters():
        if scale.factor != 1.0 and parameter.grad is not None:
            parameter.grad /= scale.factor
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    summed = ranks.total(torch.stack([*losses.values(), total]).float())
    figures = dict(zip((*losses, "loss"), summed.tolist()))
    figures["gradient_norm"] = norm.item()
    is_finite = math.isfinite(figures["gradient_norm"])
    may_overflow = config.precision == "fp16" and scale.factor > LEAST
    if not math.isfinite(figures["loss"]) or not (is_finite or may_overflow):
        raise TeachError(
            f"step {step}: got losses {figures} on pictures {', '.join(batch.keys)}, expected "
            "finite numbers; lower teach.learning_rate or raise teach.warmup_steps"
        )
    if is_finite:
        set_learning_rate(optimizer, step, config)
        optimizer.step()
    if config.precision == "fp16":
        scale.note(is_finite)
    return figures


@contextlib.contextmanager
def _dropout_of(training_set: TrainingSet, step: int, ranks: Ranks) -> Iterator[None]:
    """What dropout draws inside the block is a function of (seed, step, rank), so that a training
    that is resumed draws the same; another number of ranks draws others."""
    if not training_set.config.net.boxes.second_classifier:
        yield
        return
    on_gpu = [training_set.device] if training_set.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        random = step_random(training_set.seed, step, f"dropout {ranks.rank}")
        torch.manual_seed(random.initial_seed())
        yield
