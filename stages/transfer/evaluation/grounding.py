"""Phrase grounding and object labels, scored against ground truth.

Grounding is a pointing game (Zhang et al., arXiv 1608.00507): the student is given a picture and a
caption, no boxes; it points to the cell most similar to a phrase; a hit is a point inside one of
the phrase's true boxes. Letters: P phrases, C cells, T word pieces, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sharding.format.resize import Resize
from sharding.format.schema import Sample
from stages.annotations.true_phrases import boxes_of_phrase
from stages.distributed import Ranks
from stages.progress import Progress
from stages.student.heads import weighted_mean
from stages.student.vision.grid import cells_of_boxes
from stages.transfer.predictor import Predictor

MIN_IOU = 0.5
"""Overlap from which a box counts as the right one, as phrase grounding is scored."""


def ground(
    predictor: Predictor, samples: Sequence[Sample], num_shown: int, ranks: Ranks = Ranks()
) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """The scores over all true phrases of all captions, and examples with heat maps.

    "phrase_grounding": pointing. Chance is the mean share of the picture that the boxes of a phrase
    cover; "center" is what pointing at the picture's center always reaches. "phrase_best_box": of
    candidate boxes (the teacher's, else the true ones of the picture) the one most similar to the
    phrase; a hit overlaps one of the phrase's boxes by half or more (IoU). Chance is the mean share
    of candidates that do; "largest" is what choosing the largest candidate always reaches. Phrases
    that no box was drawn for are left out. Ranks share the pictures out and have the same scores. A
    collective.
    """
    points, best_boxes = _Mean(), _Mean()
    shown: list[dict] = []
    of_own, own = [], ranks.own(samples)
    with Progress("grounding", total=len(own), unit="pictures", show=ranks.is_first) as progress:
        for sample in own:
            of_own.append(_point(predictor, sample))
            progress.advance()
    for sample, found in zip(samples, ranks.interleaved(of_own), strict=True):
        for phrase in found:
            points.add(
                value=phrase["hit"],
                chance=phrase.pop("chance"),
                center=phrase.pop("center_hit"),
            )
            best_boxes.add(**phrase.pop("best_box"))
        if len(shown) < num_shown:
            shown.append({"key": sample.key, "phrases": found})
    scores = {"phrase_grounding": points.means()}
    if best_boxes.num:
        scores["phrase_best_box"] = best_boxes.means()
    return scores, shown


class _Mean:
    """Means of several values over the same things."""

    def __init__(self) -> None:
        self.num = 0
        self._sums: dict[str, float] = {}

    def add(self, **values: float) -> None:
        """Count one thing; no values, no thing."""
        self.num += bool(values)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        """Each value's mean, and "num"."""
        count = max(1, self.num)
        means = {name: total / count for name, total in self._sums.items()}
        return {"value": 0.0, "chance": 0.0, **means, "num": self.num}


def best_box(
    predictor: Predictor,
    phrase: torch.Tensor,
    candidates: Candidates | None,
    cells: torch.Tensor,
    true_boxes: torch.Tensor,
) -> dict[str, float]:
    """Whether the candidate most similar to a phrase's vector [D] overlaps one of its true boxes
    [G, 4] by half, the share of candidates that do, and whether the largest one does; {} without
    candidates. cells [C, D]."""
    if candidates is None:
        return {}
    regions = weighted_mean(candidates.cells[None], cells[None])  # [1, O, D]
    similarity = predictor.student.align_head(phrase[None, None], regions)[0, 0]
    overlaps = (box_ious(candidates.boxes, true_boxes) >= MIN_IOU).any(dim=1)
    hit = bool(overlaps[int(similarity.argmax())])
    largest = (candidates.boxes[:, 2:] - candidates.boxes[:, :2]).prod(dim=1).argmax()
    return {
        "value": float(hit),
        "chance": float(overlaps.float().mean()),
        "largest": float(overlaps[int(largest)]),
    }


def box_ious(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes [A, 4] and [B, 4]: [A, B]."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(dim=1), (b[:, 2:] - b[:, :2]).prod(dim=1)
    return shared / (area_a[:, None] + area_b - shared).clamp(min=1e-9)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Boxes [O, 4] in original pixels, and how much each covers each cell [O, C]."""

    boxes: torch.Tensor
    cells: torch.Tensor


def _candidates(predictor: Predictor, sample: Sample, rows: int, columns: int) -> Candidates | None:
    """The teacher's boxes where there are some, else the true ones; None where there are none."""
    if sample.objects is not None and len(sample.objects):
        boxes = torch.tensor(sample.objects["box"].tolist())
    else:
        boxes = torch.tensor(sample.info["truth"]["boxes"]).reshape(-1, 4)
    if not len(boxes):
        return None
    cell_px = predictor.student.grid.cell_px
    scale = pixels_per_cell(predictor, sample) / cell_px
    covered = cells_of_boxes(boxes / scale.repeat(2), rows, columns, cell_px)
    return Candidates(boxes=boxes, cells=covered)


def is_in_some_box(point: torch.Tensor, boxes: torch.Tensor) -> bool:
    """Whether a point [2] lies in one of some boxes [G, 4], right and lower edges excluded."""
    inside = (point >= boxes[:, :2]) & (point < boxes[:, 2:])
    return bool(inside.all(dim=1).any())


def covered_area(boxes: torch.Tensor) -> float:
    """The area that boxes [G, 4] cover together, where they overlap once."""
    xs, ys = (boxes[:, axis::2].unique() for axis in (0, 1))  # sorted
    middles_x, middles_y = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    in_x = (boxes[:, :1] <= middles_x) & (middles_x < boxes[:, 2:3])  # [G, X]
    in_y = (boxes[:, 1:2] <= middles_y) & (middles_y < boxes[:, 3:])
    covered = (in_x[:, :, None] & in_y[:, None, :]).any(dim=0).double()
    return float((xs.diff().double()[:, None] * ys.diff().double() * covered).sum())


def _point(predictor: Predictor, sample: Sample) -> list[dict]:
    """Every true phrase of a sample: text, box, point (original pixels), hit, heat, chance."""
    captions, truth = sample.info["captions"], sample.info["truth"]
    tokens, offsets = predictor.read(captions)
    cells = predictor.cells(sample)
    picture = torch.zeros(len(captions), dtype=torch.long)
    hidden = predictor.student.align(cells, picture=picture, input_ids=tokens)
    size_px = torch.tensor([sample.info["width"], sample.info["height"]])
    # The picture fills the grid but for padding, which cells count in resized pixels.
    scale = pixels_per_cell(predictor, sample)
    candidates = _candidates(predictor, sample, cells.rows, cells.columns)
    found = []
    for row, (caption, phrases) in enumerate(zip(captions, truth["phrases"])):
        for phrase in phrases:
            true_boxes = boxes_of_phrase(truth, phrase)
            if not true_boxes:  # a scene, or nothing that a box was drawn around
                continue
            start, end = phrase["start"], phrase["end"]
            pieces = (offsets[row, :, 0] < end) & (offsets[row, :, 1] > start)
            heat = phrase_heat(
                predictor, hidden.text[row], hidden.cells[row], cells.inside[0], pieces
            )
            vector = predictor.student.pool_phrases(pieces[None, None], hidden.text[row][None])[
                0, 0
            ]
            best = int(heat.argmax())
            point = (torch.tensor([best % cells.columns, best // cells.columns]) + 0.5) * scale
            boxes = torch.tensor(true_boxes)
            found.append(
                {
                    "caption": caption,
                    "text": caption[start:end],
                    "boxes": boxes.tolist(),
                    "point": point.tolist(),
                    "hit": is_in_some_box(point, boxes),
                    "chance": covered_area(boxes) / float(size_px.prod()),
                    "best_box": best_box(predictor, vector, candidates, hidden.cells[row], boxes),
                    "center_hit": is_in_some_box(size_px / 2, boxes),
                    "heat": [round(v, 4) for v in heat.tolist()],
                    "rows": cells.rows,
                    "columns": cells.columns,
                    "cell_px": scale.tolist(),
                }
            )
    return found


def phrase_heat(
    predictor: Predictor,
    text: torch.Tensor,
    cells: torch.Tensor,
    inside: torch.Tensor,
    pieces: torch.Tensor,
) -> torch.Tensor:
    """Which cells a phrase means, by the alignment head: [C], sums to 1.

    `text` [T, D] and `cells` [C, D] are the fusion's output, `inside` bool [C] leaves out padding,
    `pieces` bool [T] are the phrase's.
    """
    vector = predictor.student.pool_phrases(pieces[None, None], text[None])
    similarity = predictor.student.align_head(vector, cells[None])[0, 0]
    return similarity.masked_fill(~inside, -torch.inf).softmax(dim=0)


def pixels_per_cell(predictor: Predictor, sample: Sample) -> torch.Tensor:
    """Width and height of a cell in pixels of the original picture."""
    width, height = _resized(predictor, sample)
    original = torch.tensor([sample.info["width"], sample.info["height"]])
    return predictor.student.grid.cell_px * original / torch.tensor([width, height])


def _resized(predictor: Predictor, sample: Sample) -> tuple[int, int]:
    config = predictor.student.config
    resize = Resize(shorter_px=config.shorter_px, longer_px=config.longer_px)
    return resize.size(sample.info["width"], sample.info["height"])


def label_objects(
    predictor: Predictor, samples: Sequence[Sample], ranks: Ranks = Ranks()
) -> dict[str, float]:
    """Share of objects whose label the student predicts from the picture and its captions.

    The objects' cells are pooled unmasked. Truth where the source has boxes, the teacher's
    labels elsewhere. Chance is the share of the commonest label, the best constant answer. Ranks
    share the pictures out and have the same score. A collective.
    """
    names = predictor.student.config.label_names
    hits, labels = 0, []
    for sample in ranks.own(samples):
        boxes, wanted = _objects(sample, names)
        if not len(boxes):
            continue
        tokens, _ = predictor.read(sample.info["captions"][:1] or [""])
        cells = predictor.cells(sample)
        hidden = predictor.student.fuse(
            cells, picture=torch.zeros(1, dtype=torch.long), input_ids=tokens
        )
        scale = pixels_per_cell(predictor, sample) / predictor.student.grid.cell_px
        regions = cells_of_boxes(
            boxes / scale.repeat(2), cells.rows, cells.columns, predictor.student.grid.cell_px
        )
        logits, _ = predictor.student.object_head(weighted_mean(regions[None], hidden.cells)[0])
        hits += int((logits.argmax(dim=-1) == wanted).sum())
        labels += wanted.tolist()
    hits = sum(ranks.gathered(hits))
    labels = [label for part in ranks.gathered(labels) for label in part]
    count = max(1, len(labels))
    commonest = max((labels.count(label) for label in set(labels)), default=0)
    return {"value": hits / count, "chance": commonest / count, "num": len(labels)}


def _objects(sample: Sample, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [O, 4] in original pixels and label rows [O] of a sample: true ones if known."""
    truth = sample.info.get("truth", {})
    if truth.get("boxes") and set(truth["labels"]) <= set(names):
        boxes, labels = truth["boxes"], [names.index(label) for label in truth["labels"]]
    elif sample.objects is not None:
        boxes, labels = sample.objects["box"].tolist(), sample.objects["label"].tolist()
    else:
        boxes, labels = [], []
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.long)
