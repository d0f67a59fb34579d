"""Labels one shard: adds objects and phrases to the samples of an image shard.

The objects come from an `ObjectSource`; here they are checked, chosen from, and compared with the
phrases of the captions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.lib.recfunctions as rfn

from sharding.format.schema import Failure, Sample, ShardError, check_objects, object_dtype
from stages.distill.config import DistillConfig
from stages.distill.inference.failures import DistillError, TeacherFailure
from stages.distill.inference.stage_timer import Clock
from stages.distill.object_source import ObjectSource
from stages.distill.shard_samples import ShardSamples
from stages.distill.text.caption_prompts import BY_PROMPT, prompts_of, similarity_by_prompt
from stages.distill.text.parser_pool import ParserPool
from stages.distill.text.phrases import Chunker, Phrase
from stages.distill.text.similarity import Similarity

MAX_FAILURES_IN_A_ROW = 32
"""Pictures that the teacher may fail on in a row before the fault is looked for in the teacher."""
MAX_OUT_OF_MEMORY_IN_A_ROW = 8
"""Pictures that may be too large for the memory in a row before the fault is the machine's."""
NUM_SAMPLES_A_PARSE = 16
"""Samples whose captions a parser gets at once, as it is faster so."""


@dataclass(frozen=True, kw_only=True)
class _Parsing:
    """Samples whose captions are parsed together, with what the teacher has for each.

    objects: those chosen, by key; none of a sample that failed. scores: by key, of the samples
    whose teacher was prompted with the phrases. phrases: gives, once it is called, those of all
    captions.
    """

    batch: list[tuple[Sample, np.ndarray | Failure]]
    objects: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    phrases: Callable[[], list[list[Phrase]]]


class Labeller:
    """Adds to samples the teacher's objects and the phrases of their captions.

    chunker: with a ParserPool captions are parsed while later pictures are with the teacher.
    `clock` counts the parts "selection" and "phrases".
    """

    def __init__(
        self,
        config: DistillConfig,
        object_source: ObjectSource,
        chunker: Chunker | ParserPool,
        similarity: Similarity,
        *,
        clock: Clock,
    ) -> None:
        self._config, self._object_source, self._clock = config, object_source, clock
        self._chunker, self._similarity = chunker, similarity
        self._failures: list[TeacherFailure] = []

    def label(self, samples: ShardSamples) -> Iterator[Sample | Failure]:
        """A result a sample, in order. What captions are parsed together follows from `samples`
        alone, so that a shard's bytes do not depend on where an earlier run stopped.

        Raises DistillError where the teacher is at fault, ShardError where it breaks the schema.
        """
        pairs = self._pairs(samples)
        most = self._chunker.most_pending if isinstance(self._chunker, ParserPool) else 0
        pending: deque[_Parsing] = deque()
        while batch := list(itertools.islice(pairs, NUM_SAMPLES_A_PARSE)):
            pending.append(self._parsing(batch))
            if len(pending) > most:
                yield from self._with_phrases(pending.popleft())
        while pending:
            yield from self._with_phrases(pending.popleft())

    def note_reused(self) -> None:
        """Count a sample whose earlier objects were reused."""
        self._failures.clear()

    def _pairs(self, samples: ShardSamples) -> Iterator[tuple[Sample, np.ndarray | Failure]]:
        """Each sample with what the object source has for it. The teacher may be far ahead, so the
        sample is read once more."""
        num_results = 0
        for result in self._object_source.objects(samples):
            if num_results == len(samples):
                raise DistillError(
                    f"the teacher gave a result for {num_results + 1} samples and had one less; "
                    "expected one each. Fix its objects method."
                )
            yield samples[num_results], result
            num_results += 1
        if num_results < len(samples):
            raise DistillError(
                f"the teacher gave {num_results} results for {len(samples)} samples; expected one "
                "each. Fix its objects method."
            )

    def _parsing(self, batch: list[tuple[Sample, np.ndarray | Failure]]) -> _Parsing:
        """The objects chosen of some samples, their captions on the way to the parser."""
        objects: dict[str, np.ndarray] = {}
        scores: dict[str, np.ndarray] = {}
        batch = [(sample, finite_or_failure(sample.key, seen)) for sample, seen in batch]
        with self._clock.during("selection"):
            for sample, seen in batch:
                if not isinstance(seen, Failure):
                    seen, by_prompt = without_prompts(seen)
                    objects[sample.key] = select(self._checked(sample.key, seen), self._config)
                    if by_prompt is not None:  # rows are by falling score, and the best stay
                        scores[sample.key] = by_prompt[: len(objects[sample.key])]
        captions = [
            caption
            for sample, _ in batch
            if sample.key in objects
            for caption in sample.info["captions"]
        ]
        if isinstance(self._chunker, ParserPool):
            phrases = self._chunker.submit(captions).result
        else:
            phrases = functools.partial(self._chunker.chunk, captions)
        return _Parsing(batch=batch, objects=objects, scores=scores, phrases=phrases)

    def _with_phrases(self, parsing: _Parsing) -> Iterator[Sample | Failure]:
        """The results of some samples, counted."""
        with self._clock.during("phrases"):
            seen_samples = [sample for sample, _ in parsing.batch if sample.key in parsing.objects]
            phrases = dict(zip(parsing.objects, self._phrases(seen_samples, parsing)))
        for sample, seen in parsing.batch:
            result: Sample | Failure
            if isinstance(seen, Failure):
                result = seen
            else:
                result = _labelled(sample, parsing.objects[sample.key], phrases[sample.key])
            self._count(result)
            if isinstance(result, TeacherFailure):
                result = Failure(key=result.key, reason=result.reason)
            yield result

    def _count(self, result: Sample | Failure) -> None:
        """DistillError after too many failures of the teacher in a row. A picture that could not
        be decoded says nothing of it."""
        if isinstance(result, Sample):
            self._failures.clear()
        if not isinstance(result, TeacherFailure):
            return
        self._failures.append(result)
        num_ran_out = sum(failure.ran_out for failure in self._failures)
        if num_ran_out >= MAX_OUT_OF_MEMORY_IN_A_ROW:
            raise DistillError(
                f"memory ran out on {num_ran_out} pictures in a row, each alone, last on "
                f"{result.key}; expected room for one picture. Free memory, or take a teacher that "
                "makes pictures smaller, and start again: finished shards are kept."
            )
        if len(self._failures) >= MAX_FAILURES_IN_A_ROW:
            raise DistillError(
                f"the teacher failed on {len(self._failures)} pictures in a row, last on "
                f"{result.key}: {result.reason}. Likely the teacher is broken, not the pictures."
            ) from result.error

    def _checked(self, key: str, objects: np.ndarray) -> np.ndarray:
        """`objects`, or ShardError unless they are as the schema and the teacher itself say."""
        where = f"the teacher's objects of picture {key}: "
        try:
            check_objects(objects)
        except ShardError as error:
            raise ShardError(f"{where}{error}") from error
        names = objects.dtype.names or ()
        num_labels, num_attributes = map(
            len, (self._object_source.label_names, self._object_source.attribute_names)
        )
        expected = object_dtype(
            feature_size=self._object_source.feature_size,
            num_top=self._object_source.num_top,
            attributes=num_attributes > 0,
        )
        if objects.dtype != expected:
            raise ShardError(
                f"{where}got {objects.dtype}, expected {expected} as the teacher says of itself"
            )
        for field, num in (
            ("label", num_labels),
            ("top_label", num_labels),
            ("attribute", num_attributes),
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
        self, samples: list[Sample], parsing: _Parsing
    ) -> Iterator[list[list[dict[str, Any]]]]:
        """For each sample, for each caption: its phrases as an object shard's json has them."""
        objects, scores = parsing.objects, parsing.scores
        found = iter(parsing.phrases())
        for sample in samples:
            rows = []
            of_sample = list(itertools.islice(found, len(sample.info["captions"])))
            asked = None
            if sample.key in scores:
                asked = similarity_by_prompt(scores[sample.key], prompts_of(of_sample))
            for phrases in of_sample:
                texts = [phrase.text for phrase in phrases]
                if asked is not None:
                    similarity = [asked[text] for text in texts]
                else:
                    similarity = self._similarity.compare(texts, objects[sample.key])
                rows.append(
                    [
                        {"text": p.text, "start": p.start, "end": p.end, "similarity": values}
                        for p, values in zip(phrases, similarity)
                    ]
                )
            yield rows


def _labelled(
    sample: Sample, objects: np.ndarray, phrases: list[list[dict[str, Any]]]
) -> Sample | Failure:
    """The sample with its objects and phrases, or its failure where a similarity is not finite:
    json has no such number, and the shard would fail for this one picture."""
    for phrase in itertools.chain(*phrases):
        if not math.isfinite(sum(phrase["similarity"])):
            reason = "phrases: got a similarity that is not finite, expected finite numbers"
            return Failure(key=sample.key, reason=reason)
    return replace(sample, info={**sample.info, "phrases": phrases}, objects=objects)


def finite_or_failure(key: str, seen: np.ndarray | Failure) -> np.ndarray | Failure:
    """What the teacher gave for picture `key`; a failure of that picture where numbers of it are
    not finite."""
    if isinstance(seen, Failure):
        return seen
    for name in seen.dtype.names or ():
        values = seen[name]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            reason = f"detect: got {name} that is not finite, expected finite numbers"
            return TeacherFailure(key=key, reason=reason)
    return seen


def without_prompts(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The array without the field of the phrases' scores, and these [O, phrases], or None."""
    names = seen.dtype.names or ()
    if BY_PROMPT not in names:
        return seen, None
    rest = rfn.repack_fields(seen[[name for name in names if name != BY_PROMPT]])
    return rest, seen[BY_PROMPT]


def select(objects: np.ndarray, config: DistillConfig) -> np.ndarray:
    """The rows that reach the threshold, at least `min_objects` and at most `max_objects`, best
    first (the rule of bottom-up attention); what is null bounds nothing. Scores are half
    precision, so the threshold is too."""
    reach = len(objects)
    if config.score_threshold is not None:
        reach = int((objects["score"] >= np.float16(config.score_threshold)).sum())
    most = len(objects) if config.max_objects is None else config.max_objects
    return objects[: min(max(reach, config.min_objects or 0), most)]
