"""Groups a stream of pictures of all sizes into batches of one size.

Which pictures share a batch follows from their sizes and places in the line alone, never from how
fast anything was.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batches(Generic[Item]):
    """Collects items by size; a batch leaves when it is full, or when its oldest item has waited
    for `window` items, itself among them.

    most: items of a full batch.
    """

    def __init__(self, *, most: int, window: int) -> None:
        self._most, self._window = most, window
        # By the age of a group's oldest item, as a group that left starts over.
        self._groups: dict[tuple[int, int], list[tuple[int, Item]]] = {}

    def add(self, number: int, size: tuple[int, int], item: Item) -> list[list[Item]]:
        """The batches that leave when the item of `size` and place `number` has come."""
        group = self._groups.setdefault(size, [])
        group.append((number, item))
        full = [self._pop(size)] if len(group) >= self._most else []
        return full + self.passed(number)

    def passed(self, number: int) -> list[list[Item]]:
        """The batches that leave when the line has come to place `number`."""
        due = []
        for size, group in list(self._groups.items()):
            oldest, _ = group[0]
            if number - oldest + 1 < self._window:
                break
            due.append(self._pop(size))
        return due

    def remaining(self) -> list[list[Item]]:
        """All that are left, at the end."""
        return [self._pop(size) for size in list(self._groups)]

    def _pop(self, size: tuple[int, int]) -> list[Item]:
        return [item for _, item in self._groups.pop(size)]
