"""Phrase grounding on Flickr30k Entities: localises the box of a phrase.

The student reads a caption, no boxes, and its phrases' vectors are compared with the cells (the
alignment head of pretraining). Tuned by the cells that lie in a phrase's boxes. Letters: E phrases,
C cells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.student.network import Student
from stages.transfer.example import Example
from stages.transfer.metrics.pointing import is_hit, is_recalled, propose_boxes
from stages.transfer.outcomes import Outcome
from stages.transfer.readers.flickr30k_entities import read_flickr30k_entities
from stages.transfer.readers.records import TaskData, read_text
from stages.transfer.task_batch import TaskBatch
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import Scores, Task

KS = (1, 5, 10)
CENTER = (0.5, 0.5)


class GroundingTask(Task):
    """The pointing game, and recall at 1, 5, 10 of boxes proposed from the heat map."""

    name = "grounding"
    score_name = "grounding_pointing"

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From the folder with Sentences and Annotations; a list of ids says which pictures."""
        ids = getattr(data, f"{split}_ids")
        return read_flickr30k_entities(
            Path(data.path("", split)),
            Path(data.path("images", split)),
            ids=read_text(Path(ids)).split() if ids else None,
            max_missing=data.max_missing,
        )

    @property
    def num_outputs(self) -> int:
        """One a cell; the head is the student's own."""
        return 0

    def make_head(self, hidden_size: int) -> nn.Module:
        """None of its own."""
        return nn.Identity()

    def logits(self, student: Student, head: nn.Module, batch: TaskBatch) -> torch.Tensor:
        """[E, rows, columns]: each cell's similarity with the phrase, -inf for padding."""
        cells = batch.encoded(student)
        picture = batch.picture[:, 0]
        hidden = student.fuse(cells, picture=picture, input_ids=batch.tokens)
        phrases = student.pool_phrases(batch.phrase_pieces[:, None], hidden.text)
        similarity = student.align_head(phrases, hidden.cells)[:, 0]
        similarity = similarity.masked_fill(~cells.inside[picture], -torch.inf)
        return similarity.view(-1, cells.rows, cells.columns)

    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """Minus the log of the share of heat that lies in the phrase's boxes."""
        heat = logits.float().flatten(1).log_softmax(dim=1)
        inside = torch.stack(
            [
                _cells_in(e.label, logits.shape[1:], _cell_size(batch, row)).flatten()
                for row, e in enumerate(batch.examples)
            ]
        ).to(heat.device)
        return -heat.masked_fill(~inside, -torch.inf).logsumexp(dim=1).clamp(min=-30).mean()

    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """{"point" (x, y), "boxes": the best ten}, as shares of the picture."""
        found = []
        for row, similarity in enumerate(logits.double()):
            heat = similarity.flatten().softmax(dim=0).view_as(similarity).cpu()
            width, height = _cell_size(batch, row)
            best_row, best_column = divmod(int(heat.argmax()), heat.shape[1])
            found.append(
                {
                    "point": [(best_column + 0.5) * width, (best_row + 0.5) * height],
                    "boxes": propose_boxes(heat, (width, height), most=max(KS)),
                }
            )
        return found

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """Chance of pointing is the picture's center, which is the stronger constant answer."""
        num = len(examples)
        hits = sum(is_hit(predictions[e.id]["point"], e.label) for e in examples)
        center = sum(is_hit(CENTER, e.label) for e in examples)
        whole = sum(is_recalled([[0.0, 0.0, 1.0, 1.0]], e.label) for e in examples)
        scores: Scores = {
            self.score_name: {"value": hits / num, "chance": center / num, "num": num}
        }
        for k in KS:
            recalled = sum(is_recalled(predictions[e.id]["boxes"][:k], e.label) for e in examples)
            scores[f"grounding_box_r{k}"] = {
                "value": recalled / num,
                "chance": whole / num,
                "num": num,
            }
        return scores

    def outcome(self, example: Example, prediction: Any) -> Outcome:
        """Right where the point lies in a box."""
        x, y = prediction["point"]
        boxes = ", ".join(
            f"({x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f})" for x1, y1, x2, y2 in example.label
        )
        return Outcome(
            said=f"({x:.2f} {y:.2f})",
            truth=boxes,
            right=float(is_hit(prediction["point"], example.label)),
            point=prediction["point"],
            boxes=example.label,
        )

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """JSON lines: phrase id, point and boxes (there is no official test server)."""
        lines = (json.dumps({"id": e.id, **predictions[e.id]}) for e in examples)
        return "grounding.jsonl", "".join(line + "\n" for line in lines)


def _cell_size(batch: TaskBatch, row: int) -> tuple[float, float]:
    """Width and height of a cell as shares of the row's picture."""
    height, width = batch.sizes_px[batch.picture[row, 0]].tolist()
    return batch.cell_px / width, batch.cell_px / height


def _cells_in(
    boxes: Sequence[Sequence[float]], shape: Sequence[int], cell: tuple[float, float]
) -> torch.Tensor:
    """Which cells a point in whose middle lies in a box; for a box between the middles, the cell
    that its own middle lies in. bool [rows, columns]."""
    rows, columns = shape
    x = (torch.arange(columns) + 0.5) * cell[0]
    y = (torch.arange(rows) + 0.5) * cell[1]
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        own = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
        if not own.any():
            row = min(rows - 1, int((y1 + y2) / 2 / cell[1]))
            own[row, min(columns - 1, int((x1 + x2) / 2 / cell[0]))] = True
        inside |= own
    return inside
