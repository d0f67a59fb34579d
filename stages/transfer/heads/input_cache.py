"""A cache of the inputs of a task's head, for a student that is not trained."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stages.transfer.task_batch import TaskBatch


class InputCache:
    """The head's inputs by picture and text; each is computed once. They are without dropout, so
    the student has to be in evaluation mode."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id
        self._kept: dict[tuple[object, ...], torch.Tensor] = {}

    @torch.no_grad()
    def of(self, batch: TaskBatch, compute: Callable[[TaskBatch], torch.Tensor]) -> torch.Tensor:
        """The inputs of a batch's rows [R, ...], by `compute` where one of them is new."""
        names = self._names(batch)
        if any(name not in self._kept for name in names):
            self._kept.update(zip(names, compute(batch).cpu()))
        return torch.stack([self._kept[name] for name in names]).to(batch.tokens.device)

    def _names(self, batch: TaskBatch) -> list[tuple[object, ...]]:
        files = list(dict.fromkeys(image for e in batch.examples for image in e.images))
        rows = zip(batch.tokens.tolist(), batch.token_types.tolist(), batch.picture.tolist())
        found: list[tuple[object, ...]] = []
        for tokens, types, pictures in rows:
            length = sum(token != self._pad_id for token in tokens)
            own = tuple(files[picture] for picture in pictures)
            found.append((own, tuple(tokens[:length]), tuple(types[:length])))
        return found
