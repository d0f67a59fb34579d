"""Teach a student a task. So far one: is the sentence true of the picture (NLVR)?

The matching head is the task's head: "matched" is "true". Trained on the train split and scored on
the held-out one, which shares no sentence with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sharding.format.schema import Sample
from sharding.writing.atomic import write_json, write_text
from stages.student.network import Student
from stages.training.batches import ExampleBatches
from stages.training.engine import check_precision, current_device, join_ranks, make_engine
from stages.training.loop import Loop, Validation
from stages.training.metrics import ObjectiveOutput
from stages.training.optimizer import AdamwSgd, adamw_rule, parameter_groups
from stages.training.stopping import Watch
from stages.training.student_folder import save_student
from stages.transfer.config import FinetuneConfig
from stages.transfer.predictor import Predictor, read_split

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's."""


@dataclass(frozen=True, kw_only=True)
class TruthBatch:
    """B pictures with a sentence each: pixels [B, 3, H, W], sizes_px [B, 2], tokens [B, T], and
    labels [B], 1 where the sentence is true."""

    keys: list[str]
    pixels: torch.Tensor
    sizes_px: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> TruthBatch:
        """The same batch on another device."""
        names = ("pixels", "sizes_px", "tokens", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class TruthModel(nn.Module):
    """The student with the task's loss, as the one module that DeepSpeed drives."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, batch: TruthBatch, is_valid: bool = True
    ) -> tuple[torch.Tensor, dict[str, ObjectiveOutput]]:
        """Cross-entropy of true and false, and how many were right."""
        logits = truth_logits(self.student, batch).float()
        loss = F.cross_entropy(logits, batch.labels)
        num_right = (logits.argmax(dim=-1) == batch.labels).sum().float()
        num = torch.tensor(float(len(batch.labels)), device=logits.device)
        return loss, {"truth": ObjectiveOutput(loss=loss, metrics={"accuracy": (num_right, num)})}

    def end_step(self) -> None:
        """Nothing follows a step: a visual dictionary stays as it is."""


def truth_logits(student: Student, batch: TruthBatch) -> torch.Tensor:
    """The matching head on each picture with its sentence: [B, 2]."""
    cells = student.see(batch.pixels, batch.sizes_px)
    picture = torch.arange(len(batch.labels), device=batch.labels.device)
    return student.match(cells, picture=picture, tokens=batch.tokens)


def finetune(
    config: FinetuneConfig,
    *,
    seed: int,
    images: Path,
    student: Path,
    out: Path,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Train from the last checkpoint in `out`, or from the start, then write `student/`,
    `predictions.jsonl` and `scores.json` (last) into `out`. `best/` is the student of the
    validation that scored best. `on_step` is called after each step with the number of steps done.

    Raises ValueError where the source does not say which sentences are true, and as
    `stages.training.loop`.
    """
    config = replace(config, micro_batch_size=config.batch_size)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    train, heldout = (_with_truth(read_split(images, split)) for split in ("train", "heldout"))
    with Watch() as watch:
        join_ranks()
        check_precision(config)
        torch.manual_seed(seed)
        predictor = Predictor.load(student)
        model = TruthModel(predictor.student.train())
        groups = parameter_groups(
            model.parameters(),
            weight_decay=config.weight_decay,
            decay_norms=True,
            rule=adamw_rule(config.lr, BETAS, EPSILON),
        )
        world_size = torch.distributed.get_world_size()
        engine = make_engine(model, AdamwSgd(groups), config, world_size)
        device = current_device()

        def save(folder: Path) -> None:
            save_student(engine, model.student, predictor.tokenizer, folder, config.save_precision)

        def accuracy(step: int) -> dict[str, float]:
            rows = predict_all(model.student, predictor, heldout, config.micro_batch_size, device)
            return {"truth_accuracy": _accuracy(rows)}

        Loop(
            engine,
            ExampleBatches(
                len(train),
                _BatchMaker(predictor, train),
                batch_size=config.micro_batch_size,
                seed=seed,
            ),
            config,
            title="finetune",
            seed=seed,
            out=out,
            watch=watch,
            device=device,
            on_step=on_step,
            validation=Validation(
                run=accuracy, best="truth_accuracy", save_best=lambda step: save(out / "best")
            ),
        ).run()
        save(out / "student")
        if torch.distributed.get_rank() == 0:
            score(Predictor.load(out / "student"), train, heldout, config.micro_batch_size, out)
        torch.distributed.barrier()


class _BatchMaker:
    """Rows of the training samples -> their batch."""

    def __init__(self, predictor: Predictor, samples: Sequence[Sample]) -> None:
        self._predictor, self._samples = predictor, samples

    def __call__(self, rows: Sequence[int]) -> TruthBatch:
        return make_batch(self._predictor, [self._samples[row] for row in rows])


def make_batch(predictor: Predictor, samples: Sequence[Sample]) -> TruthBatch:
    """Each sample's picture with its first caption."""
    pictures = predictor.pictures(samples)
    tokens, _ = predictor.read(sample.info["captions"][0] for sample in samples)
    return TruthBatch(
        keys=[sample.key for sample in samples],
        pixels=pictures.pixels,
        sizes_px=pictures.sizes_px,
        tokens=tokens,
        labels=_labels(samples),
    )


def _with_truth(samples: Sequence[Sample]) -> list[Sample]:
    known = [s for s in samples if s.info.get("truth", {}).get("captions") is not None]
    if not known:
        raise ValueError(
            f"finetune.task truth: got {len(samples)} samples, none of which says whether its "
            "sentence is true; expected a source with true and false sentences, such as nlvr"
        )
    return known


def _labels(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([int(sample.info["truth"]["captions"][0]) for sample in samples])


@torch.no_grad()
def predict_all(
    student: Student,
    predictor: Predictor,
    samples: Sequence[Sample],
    batch_size: int,
    device: torch.device,
) -> list[dict]:
    """A prediction a sample: key, sentence, whether it is true, and the probability of that."""
    predictions = []
    for start in range(0, len(samples), batch_size):
        own = samples[start : start + batch_size]
        logits = truth_logits(student, make_batch(predictor, own).to(device))
        for sample, probability in zip(own, logits.float().softmax(dim=-1)[:, 1].tolist()):
            predictions.append(
                {
                    "key": sample.key,
                    "sentence": sample.info["captions"][0],
                    "true": bool(sample.info["truth"]["captions"][0]),
                    "probability": round(probability, 4),
                }
            )
    return predictions


def _accuracy(predictions: Sequence[dict]) -> float:
    return sum((p["probability"] > 0.5) == p["true"] for p in predictions) / len(predictions)


def score(
    predictor: Predictor,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    batch_size: int,
    out: Path,
) -> None:
    """Accuracy on held-out pairs, beside always answering what is commoner in training."""
    device = next(predictor.student.parameters()).device
    predictions = predict_all(predictor.student, predictor, heldout, batch_size, device)
    commoner = _labels(train).float().mean().item() > 0.5
    majority = sum(p["true"] == commoner for p in predictions) / len(predictions)
    lines = "".join(json.dumps(prediction) + "\n" for prediction in predictions)
    write_text(out / "predictions.jsonl", lines)
    scores = {"value": _accuracy(predictions), "chance": majority}
    write_json(
        out / "scores.json",
        {"truth_accuracy": {**scores, "num": len(predictions), "num_train": len(train)}},
    )
