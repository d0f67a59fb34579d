"""An example of a downstream task: pictures, texts, and the answer where it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.student.text.token_types import Spans
from stages.student.text.tokenizer import encodable, encodable_spans


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a reader makes of an annotation.

    id: unique in its file; predictions are keyed by it. images: one picture, or two (NLVR2).
    texts: one, or a choice's each (VCR); a str, or its parts ("question", ...), ("answer", ...).
    label: the task's, None where it is not known (test files). info: what only the task's scores
    or its submission need.
    """

    id: str
    images: tuple[Path, ...]
    texts: tuple[str | Spans, ...]
    label: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = tuple(
            encodable(text) if isinstance(text, str) else encodable_spans(text)
            for text in self.texts
        )
        object.__setattr__(self, "texts", texts)


def group_by_images(examples: Sequence[Example], *, max_texts: int) -> list[tuple[Example, ...]]:
    """Examples of the same pictures together, in the order of the first one; a group with more than
    `max_texts` texts is cut. The CNN runs once a group."""
    together: dict[tuple[Path, ...], list[Example]] = {}
    for example in examples:
        together.setdefault(example.images, []).append(example)
    groups = []
    for members in together.values():
        current: list[Example] = []
        num_texts = 0
        for example in members:
            if current and num_texts + len(example.texts) > max_texts:
                groups.append(tuple(current))
                current, num_texts = [], 0
            current.append(example)
            num_texts += len(example.texts)
        groups.append(tuple(current))
    return groups
