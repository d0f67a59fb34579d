"""Visits a picture once for each group of its captions an epoch (as SOHO's code does).

A picture with n captions comes ceil(n / size) times, each time with the next `size` captions. The
last group is filled up with other captions of the picture, so that a visit is always of `size`
pairs. (SOHO's released code fills it once and for all, here it is drawn again each epoch.)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sharding.reading.dataset_source import OpenSource
from sharding.reading.sample_reader import make_sample
from sharding.reading.shard_reader import RawSample
from sharding.tools.verify import Fault
from sharding.writing.atomic import sha256_of, write_bytes
from stages.pretrain.data.every_sample import every_sample
from stages.progress import Progress


def caption_group(
    num_captions: int, visit: int, size: int, random: np.random.Generator
) -> list[int]:
    """The rows of the captions of a picture's visit, counted from 0."""
    own = list(range(visit * size, min((visit + 1) * size, num_captions)))
    missing = size - len(own)
    if not missing or not num_captions:
        return own
    others = random.choice(num_captions, size=missing, replace=missing > num_captions)
    return [*own, *(int(row) for row in others)]


def num_visits(captions: np.ndarray, size: int) -> np.ndarray:
    """Numbers of captions [N] -> visits an epoch [N]; one of a picture without captions."""
    return np.maximum(1, -(-captions // size))


def count_captions(opened: Sequence[OpenSource], folder: Path) -> list[np.ndarray]:
    """How many captions each sample of each source has, [N] a source.

    Rank 0 reads all samples once and keeps the numbers in `folder`, by the sources' content; the
    others read its file. A collective. Samples that cannot be read count as none.
    """
    content = sha256_of([one.content for one in opened])
    path = folder / f"caption-counts-{content[:16]}.npy"
    if torch.distributed.get_rank() == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        np.save(out, np.array(_counted(opened), np.int32))
        write_bytes(path, out.getvalue())
    torch.distributed.barrier()
    counts = np.load(path, allow_pickle=False)
    ends = np.cumsum([len(one.shapes) for one in opened])
    return np.split(counts, ends[:-1])


def _counted(opened: Sequence[OpenSource]) -> list[int]:
    """How many captions each sample of each source has, in the order of the shards."""
    counts: list[int] = []
    num_samples = sum(len(one.shapes) for one in opened)
    with Progress("count captions", total=num_samples, unit="pictures") as progress:
        for count in every_sample(opened, _num_captions):
            counts.append(0 if isinstance(count, Fault) else count)
            progress.advance()
    return counts


def _num_captions(raw: RawSample) -> int:
    return len(make_sample(raw.members, raw.entry).info["captions"])
