"""Phrase grounding and object labels, scored against the truth that the source knows.

Reached from `stages.transfer.evaluate`. Grounding is a pointing game (Zhang et al.,
arXiv 1608.00507): the student is given a picture and a caption, no boxes; it points to the cell
most similar to a phrase; a hit is a point inside one of the phrase's true boxes.
Letters: P phrases, C cells, T word pieces, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sharding.format.schema import Sample
from stages.progress import Progress
from stages.student.heads import weighted_mean
from stages.student.vision.grid import cells_of_boxes
from stages.student.vision.image_transforms import fitted_size
from stages.transfer.predictor import Predictor
from stages.true_phrases import boxes_of_phrase


def ground(
    looker: Predictor, samples: Sequence[Sample], num_shown: int
) -> tuple[dict[str, float], list[dict]]:
    """The score over all true phrases of all captions, and examples with heat maps.

    Phrases that no box was drawn for are left out. Chance is the mean share of the picture that
    the boxes of a phrase cover; "center" is what pointing at the picture's center always reaches.
    """
    hits, center_hits, chances, num_phrases = 0, 0, 0.0, 0
    shown: list[dict] = []
    with Progress("grounding", total=len(samples), unit="pictures") as progress:
        for sample in samples:
            found = _point(looker, sample)
            hits += sum(phrase["hit"] for phrase in found)
            center_hits += sum(phrase.pop("center_hit") for phrase in found)
            chances += sum(phrase.pop("chance") for phrase in found)
            num_phrases += len(found)
            if len(shown) < num_shown:
                shown.append({"key": sample.key, "phrases": found})
            progress.advance()
    count = max(1, num_phrases)
    score = {
        "value": hits / count,
        "chance": chances / count,
        "center": center_hits / count,
        "num": num_phrases,
    }
    return score, shown


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


def _point(looker: Predictor, sample: Sample) -> list[dict]:
    """Every true phrase of a sample: text, box, point (original pixels), hit, heat, chance."""
    captions, truth = sample.info["captions"], sample.info["truth"]
    tokens, offsets = looker.read(captions)
    cells = looker.see([sample])
    picture = torch.zeros(len(captions), dtype=torch.long)
    hidden = looker.student.fuse(cells, picture=picture, tokens=tokens)
    size_px = torch.tensor([sample.info["width"], sample.info["height"]])
    # The picture fills the grid but for padding, which cells count in resized pixels.
    scale = pixels_per_cell(looker, sample)
    found = []
    for row, (caption, phrases) in enumerate(zip(captions, truth["phrases"])):
        for phrase in phrases:
            true_boxes = boxes_of_phrase(truth, phrase)
            if not true_boxes:  # a scene, or nothing that a box was drawn around
                continue
            start, end = phrase["start"], phrase["end"]
            pieces = (offsets[row, :, 0] < end) & (offsets[row, :, 1] > start)
            heat = phrase_heat(looker, hidden.text[row], hidden.cells[row], cells.inside[0], pieces)
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
                    "center_hit": is_in_some_box(size_px / 2, boxes),
                    "heat": [round(v, 4) for v in heat.tolist()],
                    "rows": cells.rows,
                    "columns": cells.columns,
                    "cell_px": scale.tolist(),
                }
            )
    return found


def phrase_heat(
    looker: Predictor,
    text: torch.Tensor,
    cells: torch.Tensor,
    inside: torch.Tensor,
    pieces: torch.Tensor,
) -> torch.Tensor:
    """Which cells a phrase means, by the alignment head: [C], sums to 1.

    `text` [T, D] and `cells` [C, D] are the fusion's output, `inside` bool [C] leaves out padding,
    `pieces` bool [T] are the phrase's.
    """
    vector = looker.student.pool_phrases(pieces[None, None], text[None])
    similarity = looker.student.align_head(vector, cells[None])[0, 0]
    return similarity.masked_fill(~inside, -torch.inf).softmax(dim=0)


def pixels_per_cell(looker: Predictor, sample: Sample) -> torch.Tensor:
    """Width and height of a cell in pixels of the original picture."""
    width, height = _resized(looker, sample)
    original = torch.tensor([sample.info["width"], sample.info["height"]])
    return looker.student.grid.cell_px * original / torch.tensor([width, height])


def _resized(looker: Predictor, sample: Sample) -> tuple[int, int]:
    config = looker.student.config
    return fitted_size(
        sample.info["width"],
        sample.info["height"],
        shorter_px=config.shorter_px,
        longer_px=config.longer_px,
    )


def label_objects(looker: Predictor, samples: Sequence[Sample]) -> dict[str, float]:
    """Share of objects whose label the student tells from the picture and its captions.

    The objects' cells are pooled in plain sight. Truth where the source has boxes, the teacher's
    labels elsewhere. Chance is the share of the commonest label.
    """
    names = looker.student.config.label_names
    hits, labels = 0, []
    for sample in samples:
        boxes, wanted = _objects(sample, names)
        if not len(boxes):
            continue
        tokens, _ = looker.read(sample.info["captions"][:1] or [""])
        cells = looker.see([sample])
        hidden = looker.student.fuse(cells, picture=torch.zeros(1, dtype=torch.long), tokens=tokens)
        scale = pixels_per_cell(looker, sample) / looker.student.grid.cell_px
        regions = cells_of_boxes(
            boxes / scale.repeat(2), cells.rows, cells.columns, looker.student.grid.cell_px
        )
        logits, _ = looker.student.object_head(weighted_mean(regions[None], hidden.cells)[0])
        hits += int((logits.argmax(dim=-1) == wanted).sum())
        labels += wanted.tolist()
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
