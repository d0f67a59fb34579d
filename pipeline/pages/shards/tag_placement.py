"""Places the tags of many boxes so that none overlap.

Greedy, the first box first: each tag takes the first place around or along its box that is free, a
long one if it fits, else a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Size = tuple[float, float]
_GAP = 1.0


@dataclass(frozen=True)
class Tag:
    """A tag's rectangle, x0, y0 to x0 + width, y0 + height, and whether it is the long one."""

    x0: float
    y0: float
    width: float
    height: float
    is_long: bool

    def meets(self, other: Tag) -> bool:
        """Whether the two overlap, or nearly touch."""
        return (
            self.x0 < other.x0 + other.width + _GAP
            and other.x0 < self.x0 + self.width + _GAP
            and self.y0 < other.y0 + other.height + _GAP
            and other.y0 < self.y0 + self.height + _GAP
        )


def place_tags(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[Size | None, Size]], inside: Size
) -> list[Tag | None]:
    """A tag for each box (x0, y0, x1, y1), None where there is no room; all units are alike.

    sizes: width and height of the long tag (None: there is none) and of the short one. inside: of
    the picture, which no tag leaves.
    """
    placed: list[Tag] = []
    tags: list[Tag | None] = []
    for box, (long, short) in zip(boxes, sizes):
        wanted = [Tag(*place, *long, True) for place in _places(box, long, inside)] if long else []
        wanted += [Tag(*place, *short, False) for place in _places(box, short, inside)]
        tag = next((one for one in wanted if not any(one.meets(other) for other in placed)), None)
        if tag is not None:
            placed.append(tag)
        tags.append(tag)
    return tags


def _places(box: Sequence[float], size: Size, inside: Size) -> Iterator[tuple[float, float]]:
    """The places to try, best first: above and in the corners of the box, below it, then along its
    upper and lower edges. None where the tag is larger than the picture."""
    x0, y0, x1, y1 = box
    width, height = size
    if width > inside[0] or height > inside[1]:
        return
    left, right = x0, max(x0, x1 - width)
    rows = (y0 - height, y0, y1 - height, y1)
    found = [(left, row) for row in rows[:2]] + [(right, row) for row in rows[:2]]
    found += [(left, row) for row in rows[2:]] + [(right, row) for row in rows[2:]]
    steps = int((right - left) // (width + _GAP))
    found += [(left + step * (width + _GAP), row) for row in rows for step in range(1, steps + 1)]
    # Beside the box, for a small one among many.
    found += [(x1, y0), (x0 - width, y0), (x1, y1 - height), (x0 - width, y1 - height)]
    for x, y in found:
        yield (
            min(max(x, 0.0), inside[0] - width),
            min(max(y, 0.0), inside[1] - height),
        )
