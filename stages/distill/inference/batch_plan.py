"""Plans batches of pictures of one size over a whole shard, before any of them is read.

Which pictures share a batch follows from the sizes in the shard's manifest alone, never from how
fast anything was.
"""

from __future__ import annotations

from collections.abc import Sequence

RULES = "planned/1"
"""Names the rule of this file in fingerprints of what batches move; a change of it raises it."""
MOST_PLANNED = 1024
"""Pictures that are planned together at most, which bounds the results that wait for their turn."""


def plan_batches(sizes: Sequence[tuple[int, int]], *, most: int) -> list[list[int]]:
    """Places in `sizes` of the pictures of each batch, at most `most`, all of one size.

    Pictures of a size keep their order, and every batch of a size but its last is full. Batches are
    in the order of their first pictures, so that results can be given out in the order of the
    shard with as few of them waiting as there can be. Longer shards are planned in pieces of
    `MOST_PLANNED`.
    """
    planned: list[list[int]] = []
    for start in range(0, len(sizes), MOST_PLANNED):
        of_size: dict[tuple[int, int], list[int]] = {}
        batches: list[list[int]] = []
        for place, size in enumerate(sizes[start : start + MOST_PLANNED], start):
            batch = of_size.get(size)
            if batch is None or len(batch) == most:
                batch = of_size[size] = []
                batches.append(batch)
            batch.append(place)
        planned += batches
    return planned
