"""Labels the codes of the visual dictionary by the held-out pictures that use them.

Letters: K codes, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sharding.format.schema import Sample
from stages.student.vision.visual_dictionary import DEAD_AFTER
from stages.transfer.evaluation.grounding import pixels_per_cell
from stages.transfer.predictor import Predictor

NUM_SHOWN = 24
NUM_PATCHES = 12

Place = tuple[int, int]
"""A cell: the sample's row, and the cell's number in its grid."""


def code_gallery(predictor: Predictor, samples: Sequence[Sample]) -> dict | None:
    """How often held-out cells take each code, and patches of the codes taken most; None for a
    student without a dictionary, or with one that has not started.

    `counts` [K] cells of each code; `perplexity` exp(entropy) of them; `dead` the codes that no
    cell had taken in a while when training ended. A patch is a cell's `box`, xyxy in pixels of the
    original picture.
    """
    dictionary = predictor.student.dictionary
    if dictionary is None or not dictionary.started:
        return None
    counts = torch.zeros(len(dictionary.codes), dtype=torch.long)
    places: dict[int, dict[int, list[int]]] = {}
    columns = []
    for row, sample in enumerate(samples):
        cells = predictor.cells(sample)
        assert cells.codes is not None
        columns.append(cells.columns)
        inside = cells.inside[0].nonzero()[:, 0].tolist()
        codes = cells.codes[0][inside]
        counts += torch.bincount(codes, minlength=len(counts))
        for cell, code in zip(inside, codes.tolist()):
            places.setdefault(code, {}).setdefault(row, []).append(cell)
    ranked = counts.argsort(descending=True, stable=True)[:NUM_SHOWN].tolist()
    share = counts / counts.sum().clamp(min=1)
    return {
        "counts": counts.tolist(),
        "perplexity": round(float(torch.special.entr(share).sum().exp()), 2),
        "dead": (dictionary.age >= DEAD_AFTER).nonzero()[:, 0].tolist(),
        "shown": [
            {
                "code": code,
                "patches": [
                    {
                        "key": samples[row].key,
                        "box": _box(predictor, samples[row], cell, columns[row]),
                    }
                    for row, cell in spread_places(places[code])
                ],
            }
            for code in ranked
            if counts[code]
        ],
    }


def spread_places(cells_of: dict[int, list[int]]) -> list[Place]:
    """At most NUM_PATCHES cells of one code, no two of a picture, evenly over the pictures: the
    middle one of each picture's. Not the likeliest ones: a gallery of those would flatter."""
    places = [(row, cells[len(cells) // 2]) for row, cells in cells_of.items()]
    num = min(NUM_PATCHES, len(places))
    return [places[i * len(places) // num] for i in range(num)]


def _box(predictor: Predictor, sample: Sample, cell: int, columns: int) -> list[float]:
    width, height = pixels_per_cell(predictor, sample).tolist()
    x, y = cell % columns * width, cell // columns * height
    return [round(v, 2) for v in (x, y, x + width, y + height)]
