"""Runs a student on held-out samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from boxless.errors import BoxlessError
from sharding.format.catalog import read_catalog
from sharding.format.schema import Sample
from sharding.reading.sample_reader import iterate
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.student.text.tokenizer import load_tokenizer
from stages.student.vision.image_transforms import Pictures, load_picture, stack_bytes

KEPT_BYTES = 1 << 29


def read_split(folder: Path, split: str, most: int | None = None) -> list[Sample]:
    """The first `most` samples of a split (all if None), in shard order.

    Raises ShardError (a ValueError) where the shards are damaged or the split is empty.
    """
    catalog = read_catalog(folder)
    every = (sample for tar in catalog.tars(folder, split) for sample in iterate(tar))
    samples = list(itertools.islice(every, most))
    if not samples:
        raise BoxlessError(
            f"{folder}: got no sample in split {split!r}, expected at least one; a larger "
            "ingest.heldout_fraction holds out more"
        )
    return samples


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A student with its tokenizer."""

    student: Student
    tokenizer: PreTrainedTokenizerFast
    _kept: dict[bytes, Cells] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """From a student folder, ready to score."""
        # A student saved in 16 bits would otherwise stay so, and be trained without float32
        # weights.
        student = Student.from_pretrained(str(folder), dtype=torch.float32).eval()
        return cls(student=student, tokenizer=load_tokenizer(folder))

    def pictures(self, samples: Sequence[Sample]) -> Pictures:
        """Some samples' pictures, padded to one size."""
        config = self.student.config
        arrays = [
            load_picture(s.image, shorter_px=config.shorter_px, longer_px=config.longer_px)
            for s in samples
        ]
        return stack_bytes(arrays, multiple_px=self.student.grid.pad_px)

    def encode_image(self, samples: Sequence[Sample]) -> Cells:
        """The cells of some samples' pictures, padded to one grid."""
        pictures = self.pictures(samples)
        return self.student.encode_image(pictures.pixels, pictures.sizes_px)

    def cells(self, sample: Sample) -> Cells:
        """The cells of one sample's picture, alone. They are kept by its bytes, up to `KEPT_BYTES`
        of all: the CNN runs once a picture, whatever is scored of it."""
        kept = self._kept.get(sample.image)
        if kept is not None:
            return kept
        cells = self.encode_image([sample])
        if sum(one.features.nbytes for one in [*self._kept.values()]) < KEPT_BYTES:
            self._kept[sample.image] = cells
        return cells

    def read(self, texts: Iterable[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Word pieces [B, T], padded, and the characters each covers [B, T, 2]."""
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.student.config.max_tokens,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["offset_mapping"]
