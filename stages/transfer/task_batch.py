"""A batch of a task's examples as tensors. The CNN sees each picture once, whatever is asked of it.

Letters: N pictures, R text rows (one an example, or one a choice), P pictures a row, T word pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stages.student.fusion.last_layer import OutputPlaces
from stages.student.network import Student
from stages.student.outputs import Cells
from stages.student.processor import StudentProcessor
from stages.student.text.token_types import Spans
from stages.transfer.example import Example
from stages.transfer.fixed_blocks import FixedBlock

Texts = Callable[[Example], Sequence[str | Spans]]


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """pixels [N, 3, H, W], sizes_px [N, 2]; tokens and token_types [R, T]; picture [R, P], the
    pictures of each row; phrase_pieces bool [R, T], the pieces of the phrase that an example's info
    has "start" and "end" of; cell_px, the side of a cell; cells, of the pictures, where they are
    known."""

    examples: tuple[Example, ...]
    pixels: torch.Tensor
    sizes_px: torch.Tensor
    tokens: torch.Tensor
    token_types: torch.Tensor
    picture: torch.Tensor
    phrase_pieces: torch.Tensor
    cell_px: int
    cells: Cells | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The examples' ids, for errors."""
        return tuple(example.id for example in self.examples)

    def to(self, device: torch.device) -> TaskBatch:
        """The same batch on another device."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> TaskBatch:
        """The batch of what `function` gives for each tensor that collate made."""
        names = ("pixels", "sizes_px", "tokens", "token_types", "picture", "phrase_pieces")
        mapped: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **mapped)

    def with_pictures(self, picture: torch.Tensor) -> TaskBatch:
        """The same rows beside other pictures of the batch [R, P]."""
        return replace(self, picture=picture)

    def with_cells(self, student: Student) -> TaskBatch:
        """The same batch with its pictures' cells: the CNN does not run again."""
        return replace(self, cells=self.encoded(student))

    def encoded(self, student: Student) -> Cells:
        """The cells of the batch's pictures."""
        return self.cells or student.encode_image(self.pixels, self.sizes_px)

    def of_block(self, block: FixedBlock, *, pad_id: int) -> TaskBatch:
        """Some rows, of all examples' pictures, as a batch of fixed shape."""
        return replace(
            self,
            tokens=block.cut(self.tokens, pad_id),
            token_types=block.cut(self.token_types),
            phrase_pieces=block.cut(self.phrase_pieces, False),
            picture=self.picture[list(block.rows)],
        )

    def of_example(self, example: Example, rows: slice) -> TaskBatch:
        """One example, whose rows these are."""
        names = ("tokens", "token_types", "picture", "phrase_pieces")
        own = {name: getattr(self, name)[rows] for name in names}
        return replace(self, examples=(example,), **own)

    def cls(self, student: Student) -> torch.Tensor:
        """What the fusion makes of [CLS], for each picture of a row: [R, P, D]. The last layer
        gives [CLS] alone."""
        cells = self.encoded(student)
        first = OutputPlaces.of_first(len(self.tokens), self.tokens.device)
        outputs = []
        for picture in self.picture.unbind(dim=1):
            hidden = student.fuse(
                cells,
                picture=picture,
                input_ids=self.tokens,
                token_type_ids=self.token_types,
                output_mask=first,
            )
            outputs.append(hidden.text[:, 0])
        return torch.stack(outputs, dim=1)


def collate(
    examples: Sequence[Example], processor: StudentProcessor, texts_of: Texts, *, cell_px: int
) -> TaskBatch:
    """A batch of some examples; `texts_of` gives the rows of each."""
    number: dict[Path, int] = {}
    for example in examples:
        for image in example.images:
            number.setdefault(image, len(number))
    rows = [(example, text) for example in examples for text in texts_of(example)]
    inputs = processor(list(number), [text for _, text in rows])
    return TaskBatch(
        examples=tuple(examples),
        pixels=inputs["pixel_values"],
        sizes_px=inputs["sizes_px"],
        tokens=inputs["input_ids"],
        token_types=inputs["token_type_ids"],
        picture=torch.tensor([[number[image] for image in e.images] for e, _ in rows]),
        phrase_pieces=_phrase_pieces(rows, processor, inputs["input_ids"].shape),
        cell_px=cell_px,
    )


def _phrase_pieces(
    rows: Sequence[tuple[Example, str | Spans]], processor: StudentProcessor, shape: torch.Size
) -> torch.Tensor:
    """bool [R, T], the pieces within the phrase of each row; none for an example without."""
    pieces = torch.zeros(shape, dtype=torch.bool)
    for row, (example, text) in enumerate(rows):
        if "start" not in example.info:
            continue
        pieces[row, places_of_phrase(text, example.info, processor)] = True
    return pieces


def places_of_phrase(
    text: str | Spans, info: Mapping[str, Any], processor: StudentProcessor
) -> list[int]:
    """The word pieces of a text, by number, that lie in the phrase from character `start` to `end`
    of `info`: none of what the student does not read, beyond its `max_tokens`."""
    encoded = processor.tokenizer(
        text, truncation=True, max_length=processor.max_tokens, return_offsets_mapping=True
    )
    return [
        place
        for place, (start, end) in enumerate(encoded["offset_mapping"])
        if start < info["end"] and end > info["start"]
    ]
