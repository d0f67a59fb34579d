"""What pretraining trains on: positions in the order of the shards, each made into a masked
batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sharding.format.resize import Resize
from sharding.format.schema import ShardError
from sharding.order.turns import Turn
from sharding.reading.dataset_source import DatasetSource, OpenSource
from sharding.reading.sample_reader import make_sample
from sharding.reading.shard_reader import RawSample
from sharding.reading.stream import ShardStream
from sharding.tools.verify import Fault
from stages.atomic_folder import replace_folder
from stages.pretrain.config import PretrainConfig
from stages.pretrain.data.collate import Collate, Decoded
from stages.pretrain.data.every_sample import every_sample
from stages.student.checkpoints.pretrained import published_tokenizer
from stages.student.config import StudentConfig
from stages.student.text.token_types import add_person_tags
from stages.student.text.tokenizer import load_tokenizer, train_tokenizer
from stages.training.data_loader import LoadedBatch

ONE_TEACHER = ("label_names", "attribute_names", "feature_size", "num_top", "teacher")
"""What the catalogs of sources that are mixed must agree on."""
ANY_SHAPE_PX = 2**30
"""A step between shapes that no picture reaches: all are alike."""


class Batches:
    """`batches[turn]` is the turn's batch: samples read, decoded, collated and masked. A
    `stages.training.data_loader.BatchSource`.

    open_older: opens the same shards in the order of versions before 0.2, in which their
        checkpoints continue.
    """

    def __init__(
        self,
        stream: ShardStream,
        collate: Collate,
        open_older: Callable[[], ShardStream] | None = None,
    ) -> None:
        self.stream, self.collate = stream, collate
        self.board = stream.board
        self._open_older = open_older

    def state(self, position: int) -> Mapping[str, Any]:
        """What to save in a checkpoint."""
        return self.stream.state(position)

    def position(self, state: Mapping[str, Any]) -> int:
        """The position of a saved state, from which batches are in its order; ShardError where
        data or order are others."""
        try:
            return self.stream.position(state)
        except ShardError:
            older = self._open_older() if self._open_older else None
            if older is None or not older.has_order_of(state):
                raise
            self.stream, self.board = older, older.board
            return older.position(state)

    def epochs(self, position: int) -> float:
        """How often the first source has been gone through before `position`."""
        return self.stream.plan.epochs(position)[0]

    def __getitem__(self, turn: Turn) -> LoadedBatch:
        """Samples that are damaged, gone or cannot be decoded are left out and named."""
        micro_batch, results = self.stream.results(
            turn.position, functools.partial(self._decoded, turn.position)
        )
        visits = micro_batch.visits or (0,) * len(results)
        decoded = [
            (result, visit)
            for result, visit in zip(results, visits, strict=True)
            if not isinstance(result, Fault)
        ]
        faults = tuple(result for result in results if isinstance(result, Fault))
        batch = None
        if decoded:
            self.stream.board.set_stage("collate")
            batch = self.collate.batch(turn.position, *zip(*decoded))
            self.stream.board.set_idle()
        return LoadedBatch(turn=turn, batch=batch, faults=faults)

    def _decoded(self, position: int, raw: RawSample) -> Decoded:
        """A sample and its picture; ShardError, to which the stream adds shard and key."""
        sample = make_sample(raw.members, raw.entry)
        self.stream.board.set_stage("decode", raw.shard, sample.key)
        try:
            return self.collate.decode(position, sample)
        except Exception as error:  # Pillow raises nearly everything on broken bytes
            raise ShardError(
                f"got {type(error).__name__} ({error}), expected a picture that can be decoded"
            ) from error


def sources_of(objects: Path, config: PretrainConfig) -> list[DatasetSource]:
    """The sets of shards to train on: those of the recipe, else the run's own."""
    return [
        DatasetSource(folder=source.folder, split=source.split, weight=source.weight)
        for source in config.data.sources
    ] or [DatasetSource(folder=objects)]


def open_stream(
    sources: Sequence[DatasetSource],
    config: PretrainConfig,
    *,
    seed: int,
    resize: Resize,
    shape_step_px: int,
    num_visits: Sequence[np.ndarray] | None = None,
) -> ShardStream:
    """The sources in the run's order, each sample as often an epoch as `num_visits` has it.

    Pictures share micro-batches whose sides, after `resize` or as they are on disk (by
    `pretrain.group_by`), round up to the same multiples of `shape_step_px`; or any pictures do.
    """
    return ShardStream(
        sources,
        seed=seed,
        micro_batch_size=config.micro_batch_size,
        window_num_shards=config.window_num_shards,
        shape_step_px=ANY_SHAPE_PX if config.group_by == "none" else shape_step_px,
        resize=None if config.group_by == "original" else resize,
        cache_bytes=config.data.cache_bytes,
        num_visits=num_visits,
        # An outage is no bad sample: it must not use up what may be skipped.
        waits_for_store=config.data.on_fault == "skip",
    )


def about_of(opened: Sequence[OpenSource]) -> dict[str, Any]:
    """The metadata of the catalogs: label_names, feature_size and the like.

    Raises ShardError where two sources are of different teachers.
    """
    first, *others = opened
    for other in others:
        for name in ONE_TEACHER:
            if other.metadata.get(name) != first.metadata.get(name):
                raise ShardError(
                    f"pretrain.data.sources: got another {name} in {other.store.where} than in "
                    f"{first.store.where}, expected shards of one teacher; distil both with it"
                )
    return first.metadata


def make_tokenizer(
    student: StudentConfig, opened: Sequence[OpenSource], folder: Path
) -> PreTrainedTokenizerFast:
    """The published tokenizer, or one trained on the captions: by rank 0, for all ranks. With the
    person tags that the recipe asks for.

    A collective where it is trained; an earlier start of the same run left it in `folder`. Raises
    ValueError where the published one cannot be reached.
    """
    tokenizer = _tokenizer(student, opened, folder)
    add_person_tags(tokenizer, student.num_person_tags)
    return tokenizer


def _tokenizer(
    student: StudentConfig, opened: Sequence[OpenSource], folder: Path
) -> PreTrainedTokenizerFast:
    if student.pretrained_text:
        return published_tokenizer(student.pretrained_text)
    if torch.distributed.get_rank() == 0 and not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(captions_of(opened), vocab_size=student.vocab_size)
        replace_folder(folder, tokenizer.save_pretrained)
    torch.distributed.barrier()
    return load_tokenizer(folder)


def captions_of(opened: Sequence[OpenSource]) -> Iterator[str]:
    """Every caption of every source, in the order of the shards; damaged samples are left out."""
    for captions in every_sample(opened, _captions):
        if not isinstance(captions, Fault):
            yield from captions


def _captions(raw: RawSample) -> list[str]:
    return make_sample(raw.members, raw.entry).info["captions"]
