"""Tiny object shards, students and batches for the tests of student, pretraining and transfer.

The shards hold toy scenes labelled from their truth, as if a teacher had seen everything right.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample, object_dtype
from sharding.writing.shard_writer import write_shard
from stages.ingest.sources.source import Picture
from stages.ingest.sources.toy import COLOURS, SHAPES, SIDE_PX, ToySource
from stages.pretrain.data.batch import Batch
from stages.student.build import make_student
from stages.student.config import StudentConfig
from stages.student.network import Student
from stages.student.text.tokenizer import train_tokenizer

FEATURE_SIZE = 6
NUM_TOP = 3
SHARD_SIZE = 6
TINY = StudentConfig(
    stem_width=8,
    widths=(8, 16),
    depths=(1, 1),
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    ffn_size=32,
    vocab_size=150,
    max_tokens=24,
    shorter_px=32,
    longer_px=64,
)
"""Cells of 16 pixels; a square picture has 2 x 2 of them."""


def toy_object_sample(picture: Picture) -> Sample:
    """A scene as an object shard holds it: scores fall by 0.1, the soft label has 0.6 0.3 0.1."""
    truth = picture.truth
    assert truth is not None
    rows = len(truth["labels"])
    objects = np.zeros(
        rows, object_dtype(feature_size=FEATURE_SIZE, num_top=NUM_TOP, attributes=True)
    )
    for row, item in enumerate(objects):
        label = SHAPES.index(truth["labels"][row])
        colour = list(COLOURS).index(truth["attributes"][row])
        item["box"], item["score"], item["label"] = truth["boxes"][row], 0.9 - row / 10, label
        item["feature"] = np.cos(label + colour * np.arange(FEATURE_SIZE))
        item["top_label"] = (label + np.arange(NUM_TOP)) % len(SHAPES)
        item["top_score"] = (0.6, 0.3, 0.1)
        item["attribute"], item["attribute_score"] = colour, 0.9
    phrases = [
        [
            {
                "text": caption[p["start"] : p["end"]],
                "start": p["start"],
                "end": p["end"],
                "similarity": [1.0 if row in p["objects"] else 0.2 for row in range(rows)],
            }
            for p in spans
        ]
        for caption, spans in zip(picture.captions, truth["phrases"])
    ]
    info = {
        **picture.fields,
        "captions": list(picture.captions),
        "width": SIDE_PX,
        "height": SIDE_PX,
        "truth": truth,
        "phrases": phrases,
    }
    return Sample(
        key=picture.key, image=picture.read(), extension="jpg", info=info, objects=objects
    )


@functools.lru_cache(maxsize=4)
def toy_samples(num_train: int, num_heldout: int, seed: int = 0) -> tuple[Sample, ...]:
    """Labelled scenes, held-out ones first; treat them as read-only."""
    source = ToySource(num_train=num_train, num_heldout=num_heldout, seed=seed)
    return tuple(toy_object_sample(p) for p in source.pictures() if isinstance(p, Picture))


def with_boxes(sample: Sample, boxes: Sequence[Sequence[float]]) -> Sample:
    """The sample with its first objects only, moved to `boxes`, and phrases that know of these."""
    assert sample.objects is not None
    objects = sample.objects[: len(boxes)].copy()
    objects["box"] = np.reshape(boxes, (-1, 4))
    phrases = [
        [{**p, "similarity": p["similarity"][: len(boxes)]} for p in rows]
        for rows in sample.info["phrases"]
    ]
    return replace(sample, objects=objects, info={**sample.info, "phrases": phrases})


def write_objects(folder: Path, samples: Sequence[Sample]) -> Path:
    """Shards of `SHARD_SIZE` samples with their catalog; the split is in the key."""
    splits = {}
    for split in ("train", "heldout"):
        own = [sample for sample in samples if f"-{split}-" in sample.key]
        for number, start in enumerate(range(0, len(own), SHARD_SIZE)):
            tar = f"{split}-{number:06d}.tar"
            write_shard(folder / tar, own[start : start + SHARD_SIZE], fingerprint={"test": "1"})
            splits[tar] = split
    about = {
        "label_names": list(SHAPES),
        "attribute_names": list(COLOURS),
        "feature_size": FEATURE_SIZE,
        "num_top": NUM_TOP,
    }
    write_catalog(folder, kind="objects", splits=splits, metadata=about)
    return folder


@functools.lru_cache(maxsize=1)
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A small vocabulary that covers the toy's grammar."""
    captions = [text for s in toy_samples(24, 6) for text in s.info["captions"]]
    return train_tokenizer(captions, vocab_size=TINY.vocab_size)


def tiny_student(config: StudentConfig = TINY, *, seed: int = 0) -> Student:
    """A new student with the toy's labels and vocabulary, in evaluation mode.

    The CNN's running statistics are made uneven, since those of a new BatchNorm do nothing.
    """
    torch.manual_seed(seed)
    tokenizer = toy_tokenizer()
    student = make_student(
        config,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        label_names=list(SHAPES),
        feature_size=FEATURE_SIZE,
    )
    for name, buffer in student.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    torch.nn.init.normal_(student.mask_cell)
    return student.eval()


def random_batch(
    seed: int,
    *,
    pictures: int = 3,
    captions: int = 2,
    objects: int = 4,
    phrases: int = 3,
    grid: tuple[int, int] = (3, 4),
    vocab: int = 40,
    num_labels: int = 5,
) -> Batch:
    """A batch of noise with padding of every kind: pictures with 0 to `objects` objects (the
    first has none, the last all), texts of unlike length, captions with 0 to `phrases` phrases."""
    random = np.random.default_rng(seed)
    pairs, cells, length = pictures * captions, grid[0] * grid[1], 9
    counts = [0, *random.integers(1, objects + 1, max(0, pictures - 2)), objects][-pictures:]
    exists = torch.arange(objects) < torch.tensor(counts)[:, None]
    regions = torch.from_numpy(random.random((pictures, objects, cells)) < 0.3)
    regions[..., 0] |= ~regions.any(dim=-1)
    weights = regions / regions.sum(dim=-1, keepdim=True)
    sizes = torch.tensor([[grid[0] * 16, grid[1] * 16]] * pictures)
    lengths = random.integers(5, length + 1, pairs)
    tokens = torch.from_numpy(random.integers(5, vocab, (pairs, length)))
    tokens[torch.arange(length) >= torch.from_numpy(lengths)[:, None]] = 0
    tokens[:, 0] = 2
    tokens[torch.arange(pairs), torch.from_numpy(lengths) - 1] = 3
    spans = torch.from_numpy(random.random((pairs, phrases, length)) < 0.4) & (tokens > 4)[:, None]
    num_phrases = torch.from_numpy(random.integers(0, phrases + 1, pairs))
    top_label = random.permuted(np.tile(np.arange(num_labels), (pictures, objects, 1)), axis=-1)
    is_true = torch.from_numpy(random.random(pairs) < 0.7)
    return Batch(
        keys=[f"k{n}" for n in range(pictures)],
        views=[f"k{n}" for n in range(pictures)],
        pixels=torch.zeros(pictures, 3, grid[0] * 16, grid[1] * 16),
        sizes_px=sizes,
        picture=torch.arange(pictures).repeat_interleave(captions),
        tokens=tokens,
        texts=tokens.clone(),
        is_true=is_true,
        ordinary=tokens > 4,
        matched=is_true.clone(),
        masked_cells=torch.zeros(pairs, cells, dtype=torch.bool),
        regions=weights * exists[..., None],
        score=torch.from_numpy(random.random((pictures, objects))).float() * exists,
        label=torch.where(exists, torch.from_numpy(top_label[..., 0]), -1),
        top_label=torch.from_numpy(top_label[..., :NUM_TOP]) * exists[..., None],
        top_score=torch.from_numpy(random.random((pictures, objects, NUM_TOP))).float()
        * exists[..., None],
        feature=torch.from_numpy(random.normal(size=(pictures, objects, FEATURE_SIZE))).float(),
        phrases=spans & (torch.arange(phrases) < num_phrases[:, None])[..., None],
        similarity=torch.from_numpy(random.random((pairs, phrases, objects))).float(),
        mlm_labels=torch.full_like(tokens, -100),
        hidden_objects=torch.full((pairs, 1), -1),
        anchors=torch.full((pairs, 1), -1),
        mvm_labels=torch.full((pairs, cells), -100),
    )


def in_double(batch: Batch) -> Batch:
    """The batch with its real numbers in float64, for gradient checks."""
    floats = {
        name: value.double()
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return replace(batch, **floats)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of json lines; [] where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
