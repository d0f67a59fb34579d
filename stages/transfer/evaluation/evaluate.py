"""`boxless evaluate`: retrieval, grounding and labels on held-out pictures.

Writes `scores.json` (each score beside chance) and `examples.json` (what the report shows).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sharding.format.schema import Sample
from sharding.writing.atomic import write_json
from stages.distributed import Ranks, joined_ranks
from stages.transfer.config import EvaluateConfig
from stages.transfer.evaluation.grounding import ground, label_objects
from stages.transfer.evaluation.retrieval import captions_found, gallery, score_matrix
from stages.transfer.fixed_blocks import fixed_threads
from stages.transfer.metrics.retrieval_recall import recalls
from stages.transfer.predictor import Predictor, read_split
from stages.transfer.probes.codebook import code_gallery
from stages.transfer.probes.forward_trace import attention_example

BESIDE = ("chance", "center", "largest")
"""Baselines printed beside a score: random guesses, the picture's center, the largest box."""


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
    truth the source does not have is left out, and so is one of a head that pretraining did not
    train. Nothing is drawn, so there is no seed. Every rank that a launcher started calls it; they
    share the pictures, and rank 0 writes.
    """
    with fixed_threads(config.num_threads), joined_ranks(on_gpus=False) as ranks:
        scores, shown = _score(config, Predictor.load(student), samples, ranks)
        if ranks.is_first:
            ap50 = _teacher_ap50(teacher) if config.split_of_shards == "heldout" else None
            if ap50 is not None:
                scores["teacher_ap50"] = {"value": ap50, "chance": 0.0}
            write_json(out / "examples.json", shown)
            write_json(out / "scores.json", scores)
            for line in scores_in_words(scores):
                print(f"evaluate: {line}", flush=True)


def _score(
    config: EvaluateConfig, predictor: Predictor, samples: Path, ranks: Ranks
) -> tuple[dict[str, dict], dict[str, Any]]:
    """Scores, the same on every rank, and, on rank 0, examples. A collective."""
    pictures = read_split(samples, config.split_of_shards, config.num_pictures)
    scores: dict[str, dict] = {}
    shown: dict[str, Any] = {}
    texts, picture_of = true_captions(pictures, config.captions_per_picture)
    if texts:
        matrix = score_matrix(
            predictor,
            pictures,
            texts,
            shortlist=config.shortlist,
            itm_weight=config.itm_weight,
            query_bank=config.query_bank,
            ranks=ranks,
        )
        scores.update(recalls(matrix, picture_of))
        shown["retrieval"] = gallery(matrix, picture_of, pictures, texts, config.num_shown)
        shown["captions"] = captions_found(matrix, picture_of, pictures, texts, config.num_shown)
    with_phrases = [one for one in pictures if "phrases" in one.info.get("truth", {})]
    if with_phrases:
        found, shown["grounding"] = ground(predictor, with_phrases, config.num_shown, ranks)
        scores.update(found)
    objectives = predictor.student.config.objectives
    if objectives is None or "omvm" in objectives:
        labels = label_objects(predictor, pictures, ranks)
        if labels["num"]:
            scores["object_label"] = labels
    if ranks.is_first:
        shown |= _looked_into(config, predictor, pictures)
        _note_untrained(objectives)
        bank = predictor.student.query_bank
        if texts and config.query_bank and bank and bank.num_filled:
            print(
                f"evaluate: retrieval is normalised by the student's bank of {bank.num_filled} "
                "training pairs; evaluate.query_bank=false scores by the cosines alone"
            )
    return scores, shown


def _looked_into(
    config: EvaluateConfig, predictor: Predictor, pictures: Sequence[Sample]
) -> dict[str, Any]:
    """Examples of attention, and of codes where the student has a dictionary."""
    captioned = [sample for sample in pictures if sample.info["captions"]]
    few = captioned[: config.num_shown // 2]
    shown: dict[str, Any] = {"attention": [attention_example(predictor, one) for one in few]}
    codes = code_gallery(predictor, pictures)
    return {**shown, "codes": codes} if codes else shown


def _note_untrained(objectives: Sequence[str] | None) -> None:
    """Say which scores are of heads that pretraining did not train, where that is known."""
    if objectives is None:
        return
    if "omvm" not in objectives:
        print("evaluate: object labels are not scored: their head is not trained, without omvm")
    if "pra" not in objectives:
        print("evaluate: phrase grounding is by a head that is not trained, without pra")


def scores_in_words(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line a score, beside chance and what a constant answer reaches."""
    return [
        f"{name} {entry['value']:.4f}, "
        + ", ".join(f"{other} {entry[other]:.4f}" for other in BESIDE if other in entry)
        for name, entry in scores.items()
    ]


def true_captions(samples: Sequence[Sample], most: int) -> tuple[list[str], torch.Tensor]:
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
