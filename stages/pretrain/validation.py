"""Losses and a small retrieval on held-out pictures while pretraining runs (ours)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sharding.format.resize import Resize
from sharding.format.schema import ShardError
from sharding.order.turns import Turn
from sharding.reading.dataset_source import DatasetSource
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.batch_source import Batches, open_stream
from stages.pretrain.data.collate import Collate
from stages.pretrain.data_config import AugmentConfig
from stages.pretrain.model import PretrainModel
from stages.training.monitoring.metrics import MetricAccumulator

RETRIEVAL = ("picture_to_text_r1", "text_to_picture_r1")


def heldout_batches(
    sources: Sequence[DatasetSource],
    config: PretrainConfig,
    collate: Collate,
    *,
    seed: int,
    shape_step_px: int,
) -> list[Batch]:
    """Batches of the first `validate_pictures` held-out pictures of the sources' order, seen as
    they are and masked once and for all. Raises ShardError where no source holds pictures out."""
    heldout = [replace(source, split="heldout") for source in sources]
    resize = Resize(shorter_px=collate.shorter_px, longer_px=collate.longer_px)
    stream = open_stream(heldout, config, seed=seed, resize=resize, shape_step_px=shape_step_px)
    source = Batches(stream, replace(collate, augment=AugmentConfig(), visits_caption_groups=False))
    batches: list[Batch] = []
    position = num_pictures = 0
    while num_pictures < config.validate_pictures and position < stream.num_micro_batches:
        loaded = source[Turn(position=position, is_padding=False)]
        if loaded.batch is not None:
            batches.append(loaded.batch)
            num_pictures += len(loaded.batch.keys)
        position += 1
    if not batches:
        raise ShardError(
            "pretrain.validate_pictures: got no held-out picture in the shards, expected some; a "
            "larger ingest.heldout_fraction holds out more, 0 validates nothing"
        )
    return batches


class HeldOut:
    """`run(step)` for `stages.training.loop.Validation`: the model's losses and accuracies on some
    batches, and R@1 among all of their pictures and texts where an objective compares them. With
    an average of weights it is that which is measured.

    Every rank goes through all batches, as ZeRO 3 requires, and has the same values.
    """

    def __init__(
        self, model: PretrainModel, batches: Sequence[Batch], device: torch.device
    ) -> None:
        self._model, self._batches, self._device = model, batches, device

    @torch.no_grad()
    def run(self, step: int) -> dict[str, float]:
        """Values by name. The module is in evaluation mode."""
        average = self._model.average
        metrics = MetricAccumulator()
        texts: list[torch.Tensor] = []
        pictures: list[torch.Tensor] = []
        picture_of: list[torch.Tensor] = []
        with average.in_place() if average else contextlib.nullcontext():
            for batch in self._batches:
                # Objectives write into a batch what they masked; it must be the same next time.
                moved = _copied(batch.to(self._device))
                loss, outputs = self._model(moved, is_valid=False)
                metrics.add(loss, outputs, is_valid=True)
                if moved.vectors is not None:
                    picture_of.append(
                        batch.picture[batch.is_true] + sum(len(one) for one in pictures)
                    )
                    texts.append(moved.vectors[0][moved.is_true].float())
                    pictures.append(moved.vectors[1].float())
        values = metrics.take()
        if texts:
            scores = torch.cat(pictures) @ torch.cat(texts).T
            values |= recall_at_1(scores.cpu(), torch.cat(picture_of).cpu())
            values["r1"] = sum(values[name] for name in RETRIEVAL) / len(RETRIEVAL)
        return values


def recall_at_1(scores: torch.Tensor, picture_of: torch.Tensor) -> dict[str, float]:
    """How often the best text is the picture's own, and the best picture the text's: scores [N, M],
    each text's picture [M]. A tie counts against; pictures without a text are only in the way."""
    own = picture_of[None] == torch.arange(len(scores))[:, None]
    best_own = scores.masked_fill(~own, -math.inf)
    best_wrong = scores.masked_fill(own, -math.inf)
    found = [best_own.amax(dim=axis) > best_wrong.amax(dim=axis) for axis in (1, 0)]
    has_text = own.any(dim=1)
    shares = (found[0][has_text].double().mean(), found[1].double().mean())
    return {name: float(share) for name, share in zip(RETRIEVAL, shares)}


def _copied(batch: Batch) -> Batch:
    tensors: dict[str, Any] = {
        name: value.clone()
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(batch, **tensors)
