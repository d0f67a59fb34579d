"""Fills the student's query bank (stages.student.query_bank) with training pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional as F

from sharding.order.turns import Turn
from sharding.reading.stream import ShardStream
from stages.pretrain.data.batch import Batch
from stages.pretrain.data.batch_source import Batches
from stages.pretrain.data.collate import Collate
from stages.pretrain.model import PretrainModel
from stages.progress import Progress


def training_pairs(
    stream: ShardStream, collate: Collate, num_pairs: int, *, show: bool
) -> Iterator[Batch]:
    """The first micro-batches of the order, one caption a picture, until they have `num_pairs`
    pictures or the epoch ends; samples that cannot be read are left out. `show`: progress."""
    source = Batches(stream, replace(collate, captions_per_picture=1, visits_caption_groups=False))
    num = 0
    with Progress("query bank", total=num_pairs, unit="pairs", show=show) as progress:
        for position in range(stream.num_micro_batches):
            if num >= num_pairs:
                break
            batch = source[Turn(position=position, is_padding=False)].batch
            if batch is not None:
                yield batch
                num += len(batch.keys)
                progress.advance(len(batch.keys))


@torch.no_grad()
def fill_query_bank(model: PretrainModel, batches: Iterator[Batch], device: torch.device) -> None:
    """Give the bank of the model's student the vectors of the first true pairs of `batches`, by
    the average of weights where there is one. Rows that no pair is left for stay empty.

    Every rank goes through all batches, as ZeRO 3 requires, and has the same vectors.
    """
    bank, average, was_training = model.student.query_bank, model.average, model.training
    assert bank is not None, "called with a bank"
    sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    model.eval()
    try:
        with average.in_place() if average else contextlib.nullcontext():
            for batch in batches:
                moved = batch.to(device)
                model(moved, is_valid=False)
                assert moved.vectors is not None, "called with the contrastive objective"
                texts, pictures = moved.vectors
                sides[0].append(pictures[moved.picture[moved.is_true]].float())
                sides[1].append(texts[moved.is_true].float())
    finally:
        model.train(was_training)
    num_pairs = bank.num_pairs
    found = [torch.cat(side)[:num_pairs] for side in sides]
    bank.fill(*(F.pad(side, (0, 0, 0, num_pairs - len(side))) for side in found))
