"""Reuses the teacher's objects of unchanged pictures when a shard is labelled again.

After a retry of ingest a shard has a few new pictures among hundreds of unchanged ones: only the
new ones go to the teacher.
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
    samples: Iterable[Sample], labeller: Labeller, previous: PreviousShard
) -> Generator[Sample | EncodedSample | Failure, None, None]:
    """A result a sample, in order: the previous one where picture and json are unchanged, else a
    new one. Raises as Labeller.label."""
    # Keys of reused samples, and None for each one that the labeller has.
    queue: deque[str | None] = deque()

    def changed() -> Iterator[Sample]:
        for sample in samples:
            if _is_unchanged(sample, previous):
                queue.append(sample.key)
            else:
                queue.append(None)
                yield sample

    for result in labeller.label(changed()):
        yield from _reused_until_next(queue, previous, labeller)
        queue.popleft()
        yield result
    yield from _reused_until_next(queue, previous, labeller)


def _reused_until_next(
    queue: deque[str | None], previous: PreviousShard, labeller: Labeller
) -> Iterator[EncodedSample]:
    """The reused samples at the front of the queue. They are read again, as keeping the bytes of
    nearly a whole shard would take its size in memory."""
    while queue and (key := queue[0]) is not None:
        kept = previous.sample(key)
        assert kept is not None, f"{key} was sound a moment ago"
        queue.popleft()
        labeller.note_reused()
        yield kept


def _is_unchanged(sample: Sample, previous: PreviousShard) -> bool:
    """Whether the previous sample has the same picture and, but for the phrases, the same json."""
    kept = previous.sample(sample.key)
    if kept is None or kept.payloads.get(sample.extension) != sample.image:
        return False
    said = json.loads(kept.payloads[JSON])
    return canonical_json({**said, "phrases": None}) == canonical_json(
        {**sample.info, "phrases": None}
    )
