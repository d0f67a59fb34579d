"""What a rank trains on: its share of the positions, each made into a masked batch.

Reached from `stages.pretrain.run` and `stages.pretrain.loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from sharding.catalog import read_catalog
from sharding.read import iterate
from sharding.stream import Stream, positions
from stages.folders import replace_folder
from stages.pretrain.batch import Batch
from stages.pretrain.collate import Collate
from stages.pretrain.config import PretrainConfig
from stages.student.config import StudentConfig
from stages.student.tokenizer import load_tokenizer, train_tokenizer


class Batches(Dataset[tuple[int, Batch]]):
    """`batches[position]` is (position, its batch), masked and ready."""

    def __init__(self, stream: Stream, collate: Collate) -> None:
        self.stream, self.collate = stream, collate

    def __getitem__(self, position: int) -> tuple[int, Batch]:
        """Read, decode, collate and mask the samples of `position`."""
        return position, self.collate(position, self.stream[position])

    def loader(
        self, config: PretrainConfig, start: int, rank: int, world_size: int
    ) -> DataLoader[tuple[int, Batch]]:
        """This rank's share of the positions from `start` to the end of the run, in order."""
        end = config.num_steps * config.micro_batches_per_step
        return DataLoader(
            self,
            batch_size=None,
            sampler=_Positions(start, rank, world_size, end),
            num_workers=config.num_workers,
        )


class _Positions:
    """An iterable of positions that can be asked again (DataLoader's samplers must be)."""

    def __init__(self, start: int, rank: int, world_size: int, end: int) -> None:
        self._arguments = (start, rank, world_size, end)

    def __iter__(self) -> Iterator[int]:
        return positions(*self._arguments)


def open_stream(objects: Path, config: PretrainConfig, *, seed: int, cell_px: int) -> Stream:
    """The train split in the run's order.

    Pictures whose sides round up to the same two cells share micro-batches.
    """
    return Stream(
        objects,
        "train",
        seed=seed,
        micro_batch_size=config.micro_batch_size,
        window_num_shards=config.window_num_shards,
        shape_step_px=2 * cell_px,
    )


def make_tokenizer(student: StudentConfig, objects: Path, folder: Path) -> PreTrainedTokenizerFast:
    """The published tokenizer, or one trained on the train captions: by rank 0, for all ranks.

    A collective where it is trained; an earlier start of the same run left it in `folder`.
    """
    if student.pretrained_text:
        return load_tokenizer(student.pretrained_text)
    if torch.distributed.get_rank() == 0 and not (folder / "tokenizer.json").exists():
        captions = [
            caption
            for tar in read_catalog(objects).tars(objects, "train")
            for sample in iterate(tar)
            for caption in sample.info["captions"]
        ]
        tokenizer = train_tokenizer(captions, vocab_size=student.vocab_size)
        replace_folder(folder, tokenizer.save_pretrained)
    torch.distributed.barrier()
    return load_tokenizer(folder)
