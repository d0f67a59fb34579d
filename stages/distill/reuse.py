"""Reuses the teacher's objects of unchanged pictures when a shard is labelled again.

After a retry of ingest a shard has a few new pictures among hundreds of unchanged ones: only the
new ones go to the teacher.
"""

from __future__ import annotations

import json
from collections.abc import Generator

from sharding.format.schema import JSON, EncodedSample, Failure, Sample
from sharding.writing.atomic import canonical_json
from sharding.writing.previous_shard import PreviousShard
from stages.distill.label import Labeller
from stages.distill.shard_samples import ShardSamples


def label_or_reuse(
    samples: ShardSamples, labeller: Labeller, previous: PreviousShard
) -> Generator[Sample | EncodedSample | Failure, None, None]:
    """A result a sample, in order: the previous one where picture and json are unchanged, else a
    new one. Raises as Labeller.label."""
    changed = [
        place for place in range(len(samples)) if not _is_unchanged(samples, place, previous)
    ]
    place = 0
    for to_label, result in zip(changed, labeller.label(samples.at(changed)), strict=True):
        yield from _reused(samples, range(place, to_label), previous, labeller)
        yield result
        place = to_label + 1
    yield from _reused(samples, range(place, len(samples)), previous, labeller)


def _reused(
    samples: ShardSamples, places: range, previous: PreviousShard, labeller: Labeller
) -> Generator[EncodedSample, None, None]:
    """The reused samples at some places. They are read again, as keeping the bytes of nearly a
    whole shard would take its size in memory."""
    for place in places:
        kept = previous.sample(samples.entries[place].key)
        assert kept is not None, f"{samples.entries[place].key} was valid a moment ago"
        labeller.note_reused()
        yield kept


def _is_unchanged(samples: ShardSamples, place: int, previous: PreviousShard) -> bool:
    """Whether the previous sample has the same picture and, but for the phrases, the same json."""
    kept = previous.sample(samples.entries[place].key)
    if kept is None:
        return False
    sample = samples[place]
    if kept.payloads.get(sample.extension) != sample.image:
        return False
    said = json.loads(kept.payloads[JSON])
    return canonical_json({**said, "phrases": None}) == canonical_json(
        {**sample.info, "phrases": None}
    )
