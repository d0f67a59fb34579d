"""Keeps what the teacher has seen before, where a shard is labelled again after its input changed.

After a retry of ingest a shard has a few new pictures among hundreds that are as they were: only
the new ones go to the teacher.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator

from sharding.format.schema import JSON, EncodedSample, Failure, Sample
from sharding.writing.atomic import canonical_json
from sharding.writing.previous_shard import PreviousShard
from stages.distill.label import Labeller


def label_or_reuse(
    samples: Iterable[Sample], labeller: Labeller, earlier: PreviousShard
) -> Generator[Sample | EncodedSample | Failure, None, None]:
    """A result a sample, in order: the earlier one where picture and json are unchanged, else a
    new one. Raises as Labeller.label."""
    # Keys of kept samples and, as None, the places of those that are with the labeller.
    line: deque[str | None] = deque()

    def changed() -> Iterator[Sample]:
        for sample in samples:
            if _is_unchanged(sample, earlier):
                line.append(sample.key)
            else:
                line.append(None)
                yield sample

    for result in labeller.label(changed()):
        yield from _kept_before_the_next(line, earlier, labeller)
        line.popleft()
        yield result
    yield from _kept_before_the_next(line, earlier, labeller)


def _kept_before_the_next(
    line: deque[str | None], earlier: PreviousShard, labeller: Labeller
) -> Iterator[EncodedSample]:
    """The kept samples at the head of the line. Read once more, as keeping the bytes of nearly a
    whole shard would take its size in memory."""
    while line and (key := line[0]) is not None:
        kept = earlier.sample(key)
        assert kept is not None, f"{key} was sound a moment ago"
        line.popleft()
        labeller.note_reused()
        yield kept


def _is_unchanged(sample: Sample, earlier: PreviousShard) -> bool:
    """Whether an earlier sample has the same picture and, but for the phrases, the same json."""
    kept = earlier.sample(sample.key)
    if kept is None or kept.payloads.get(sample.extension) != sample.image:
        return False
    said = json.loads(kept.payloads[JSON])
    return canonical_json({**said, "phrases": None}) == canonical_json(
        {**sample.info, "phrases": None}
    )
