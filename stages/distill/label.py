"""One shard's way: samples of an image shard in, the same samples with objects and phrases out.

Reached from `stages.distill.run`. A sample goes through the functions of `Labeller` in the order
decode -> detect -> select -> phrases.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from sharding.schema import Failure, Sample, ShardError, check_objects, object_dtype
from stages.distill.distill_config import DistillConfig
from stages.distill.phrases import Chunker
from stages.distill.similarity import LexicalSimilarity

MAX_FAILURES_IN_A_ROW = 32
"""Pictures that the teacher may fail on in a row before the fault is looked for in the teacher."""


class DistillError(ValueError):
    """Distillation cannot go on; the text says what was got, what was expected, what to do."""


class Detector(Protocol):
    """A teacher as distillation needs it.

    `num_top` is the length of a soft label, `fingerprint` names weights and settings. `detect`
    takes uint8 RGB tensors [H, W, 3] and gives an array of `sharding.schema.object_dtype` for
    each, boxes in pixels of that picture; what it gives for a picture must not depend on the rest
    of the batch.
    """

    @property
    def label_names(self) -> Sequence[str]: ...

    @property
    def attribute_names(self) -> Sequence[str]: ...

    @property
    def feature_size(self) -> int: ...

    @property
    def num_top(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def detect(self, pictures: list[torch.Tensor]) -> list[np.ndarray]: ...


class Labeller:
    """Labels samples with what the teacher sees and what their captions speak of."""

    def __init__(self, config: DistillConfig, teacher: Detector, chunker: Chunker) -> None:
        self._config, self._teacher, self._chunker = config, teacher, chunker
        self._similarity = LexicalSimilarity(
            teacher.label_names, teacher.attribute_names, object_text=config.object_text
        )
        self._failures_in_a_row = 0

    def label(self, samples: Iterable[Sample]) -> Iterator[Sample | Failure]:
        """A result a sample, in order. Batches are cut from `samples` alone, so that a shard's
        bytes do not depend on where an earlier run stopped.

        Raises DistillError where the teacher is at fault, ShardError where it breaks the schema.
        """
        rest = iter(samples)
        while batch := list(itertools.islice(rest, self._config.batch_size)):
            yield from self._label_batch(batch)

    def kept(self) -> None:
        """Take note that a sample was kept as the teacher saw it before, and so not badly."""
        self._failures_in_a_row = 0

    def _label_batch(self, batch: list[Sample]) -> list[Sample | Failure]:
        pictures: dict[str, torch.Tensor] = {}
        results: dict[str, Sample | Failure] = {}
        for sample in batch:
            try:
                pictures[sample.key] = decode(sample)
            except Exception as error:  # Pillow raises nearly everything on broken bytes
                _stop_if_memory(error, len(batch))
                results[sample.key] = _failure(sample.key, "decode", error)
        objects: dict[str, np.ndarray] = {}
        for key, seen in self._detect(pictures).items():
            if isinstance(seen, Failure):
                results[key] = seen
            else:
                objects[key] = select(self._checked(key, seen), self._config)
        seen_samples = [sample for sample in batch if sample.key in objects]
        for sample, phrases in zip(seen_samples, self._phrases(seen_samples, objects)):
            info = {**sample.info, "phrases": phrases}
            results[sample.key] = replace(sample, info=info, objects=objects[sample.key])
        return [results[sample.key] for sample in batch]

    def _detect(self, pictures: dict[str, torch.Tensor]) -> dict[str, np.ndarray | Failure]:
        """Objects by key. Where a batch fails its pictures go one by one, so that one bad picture
        takes no other with it."""
        if not pictures:
            return {}
        try:
            seen = self._teacher.detect(list(pictures.values()))
        except Exception as error:
            _stop_if_memory(error, len(pictures))
            if len(pictures) == 1:
                return {key: self._count_failure(key, error) for key in pictures}
            return {k: v for key in pictures for k, v in self._detect({key: pictures[key]}).items()}
        if len(seen) != len(pictures):
            raise DistillError(
                f"the teacher gave {len(seen)} arrays for {len(pictures)} pictures; expected one "
                "each. Mend the teacher's detect."
            )
        self._failures_in_a_row = 0
        return dict(zip(pictures, seen))

    def _count_failure(self, key: str, error: Exception) -> Failure:
        self._failures_in_a_row += 1
        failure = _failure(key, "detect", error)
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise DistillError(
                f"the teacher failed on {MAX_FAILURES_IN_A_ROW} pictures in a row, last on {key}: "
                f"{failure.reason}. Likely the teacher is broken, not the pictures."
            ) from error
        return failure

    def _checked(self, key: str, objects: np.ndarray) -> np.ndarray:
        """`objects`, or ShardError unless they are as the schema and the teacher itself say."""
        where = f"the teacher's objects of picture {key}: "
        try:
            check_objects(objects)
        except ShardError as error:
            raise ShardError(f"{where}{error}") from error
        names = objects.dtype.names or ()
        num_labels, num_attributes = map(
            len, (self._teacher.label_names, self._teacher.attribute_names)
        )
        expected = object_dtype(
            feature_size=self._teacher.feature_size,
            num_top=self._teacher.num_top,
            attributes=num_attributes > 0,
        )
        if objects.dtype != expected:
            raise ShardError(
                f"{where}got {objects.dtype}, expected {expected} as the teacher says of itself"
            )
        for field, num in (
            ("label", num_labels), ("top_label", num_labels), ("attribute", num_attributes)
        ):
            if field in names and (objects[field] >= num).any():
                raise ShardError(
                    f"{where}got {field} {objects[field].max()}, expected less than {num}, as the "
                    "teacher names that many"
                )
        if (objects["label"] < 0).any():
            raise ShardError(f"{where}got a label below 0")
        return objects

    def _phrases(
        self, samples: list[Sample], objects: dict[str, np.ndarray]
    ) -> Iterator[list[list[dict[str, Any]]]]:
        """For each sample, for each caption: its phrases as an object shard's json has them."""
        captions = [caption for sample in samples for caption in sample.info["captions"]]
        found = iter(self._chunker.chunk(captions))
        for sample in samples:
            rows = []
            for phrases in itertools.islice(found, len(sample.info["captions"])):
                texts = [phrase.text for phrase in phrases]
                similarity = self._similarity.compare(texts, objects[sample.key])
                rows.append(
                    [
                        {"text": p.text, "start": p.start, "end": p.end, "similarity": values}
                        for p, values in zip(phrases, similarity)
                    ]
                )
            yield rows


def decode(sample: Sample) -> torch.Tensor:
    """The picture as uint8 RGB [H, W, 3], turned by no EXIF tag, as the student sees it.

    Raises ValueError where its size is not the one in its json, as boxes would then be wrong; and
    what Pillow raises on bytes that it cannot read.
    """
    with Image.open(io.BytesIO(sample.image)) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    said = (sample.info["width"], sample.info["height"])
    if (width, height) != said:
        raise ValueError(f"the picture is {width} x {height} pixels, its json says {said}")
    return torch.tensor(pixels)


def select(objects: np.ndarray, config: DistillConfig) -> np.ndarray:
    """The rows that reach the threshold, at least `min_objects` and at most `max_objects`, best
    first (the rule of bottom-up attention). Scores are half precision, so the threshold is too."""
    reach = int((objects["score"] >= np.float16(config.score_threshold)).sum())
    return objects[: min(max(reach, config.min_objects), config.max_objects)]


def _failure(key: str, step: str, error: Exception) -> Failure:
    """A failure whose reason is the same in every run: its first line, without addresses."""
    text = re.sub(r" <[^>]* at 0x[0-9a-f]+>", "", str(error)).strip()
    lines = text.splitlines() or ["no message"]
    return Failure(key=key, reason=f"{step}: {type(error).__name__}: {lines[0][:200]}")


def _stop_if_memory(error: Exception, num_pictures: int) -> None:
    """DistillError where memory ran out: that is the machine's fault, not the picture's."""
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if memory or "can't allocate memory" in str(error):
        raise DistillError(
            f"memory ran out in a batch of {num_pictures} pictures; set distill.batch_size lower "
            "and start again, finished shards are kept."
        ) from error
