"""What the student understands of pictures it never saw: retrieval, grounding, labels.

Writes `scores.json` (each score beside chance) and `examples.json` (what the report shows).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from sharding.format.schema import Sample
from sharding.writing.atomic import write_json
from stages.transfer.config import EvaluateConfig
from stages.transfer.evaluation.grounding import ground, label_objects
from stages.transfer.evaluation.retrieval import captions_found, gallery, score_matrix
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.predictor import Predictor, read_split
from stages.transfer.probes.codebook import code_gallery
from stages.transfer.probes.forward_trace import attention_example


@torch.no_grad()
def evaluate(
    config: EvaluateConfig,
    *,
    samples: Path,
    teacher: Path | None,
    student: Path,
    out: Path,
) -> None:
    """Score the student folder on a split of the shards in `samples`: object shards, or image
    shards for a student of elsewhere.

    teacher: folder of the run's teacher; None where the objects came from elsewhere. A score whose
    truth the source does not have is left out. Nothing is drawn, so there is no seed.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    predictor = Predictor.load(student)
    pictures = read_split(samples, config.split_of_shards, config.num_pictures)
    scores: dict[str, dict] = {}
    shown: dict[str, list[dict]] = {}
    texts, picture_of = _true_captions(pictures, config.captions_per_picture)
    if texts:
        matrix = score_matrix(
            predictor,
            pictures,
            texts,
            pairs_per_batch=config.pairs_per_batch,
            shortlist=config.shortlist,
            itm_weight=config.itm_weight,
        )
        scores.update(recalls(matrix, picture_of))
        shown["retrieval"] = gallery(matrix, picture_of, pictures, texts, config.num_shown)
        shown["captions"] = captions_found(matrix, picture_of, pictures, texts, config.num_shown)
    captioned = [sample for sample in pictures if sample.info["captions"]]
    shown["attention"] = [
        attention_example(predictor, sample) for sample in captioned[: config.num_shown // 2]
    ]
    codes = code_gallery(predictor, pictures)
    with_phrases = [one for one in pictures if "phrases" in one.info.get("truth", {})]
    if with_phrases:
        found, shown["grounding"] = ground(predictor, with_phrases, config.num_shown)
        scores.update(found)
    labels = label_objects(predictor, pictures)
    if labels["num"]:
        scores["object_label"] = labels
    ap50 = _teacher_ap50(teacher) if config.split_of_shards == "heldout" else None
    if ap50 is not None:
        scores["teacher_ap50"] = {"value": ap50, "chance": 0.0}
    write_json(out / "examples.json", {**shown, "codes": codes} if codes else shown)
    write_json(out / "scores.json", scores)


def _true_captions(samples: Sequence[Sample], most: int) -> tuple[list[str], torch.Tensor]:
    """The first captions of each sample that are true of it, and the row of each one's sample."""
    texts, rows = [], []
    for row, sample in enumerate(samples):
        captions = sample.info["captions"]
        truths = sample.info.get("truth", {}).get("captions", [True] * len(captions))
        own = [caption for caption, true in zip(captions, truths) if true][:most]
        texts += own
        rows += [row] * len(own)
    return texts, torch.tensor(rows, dtype=torch.long)


def _teacher_ap50(teacher: Path | None) -> float | None:
    """What `boxless teach` measured on held-out pictures; None where it could not."""
    if teacher is None or not (teacher / "scores.json").exists():
        return None
    return json.loads((teacher / "scores.json").read_text())["ap50"]["value"]
