"""Teach a student a task. So far one: is the sentence true of the picture (NLVR)?

Reached through `boxless finetune`. The matching head is the task's head: "matched" is "true".
Trained on the train split and scored on the held-out one, which shares no sentence with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from sharding.format.schema import Sample
from sharding.writing.atomic import write_json, write_text
from stages.folders import replace_folder
from stages.progress import Progress
from stages.student.processor import StudentProcessor
from stages.transfer.config import FinetuneConfig
from stages.transfer.predictor import Predictor, read_split

WARMUP = 0.1


def finetune(config: FinetuneConfig, *, seed: int, images: Path, student: Path, out: Path) -> None:
    """Train, then write `student/`, `predictions.jsonl` and `scores.json` (last) into `out`.

    Raises ValueError where the source does not say which sentences are true.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(seed)
    train, heldout = (_with_truth(read_split(images, split)) for split in ("train", "heldout"))
    looker = Predictor.load(student)
    _train(looker, train, config, seed)
    looker.student.eval()

    def save(folder: str) -> None:
        looker.student.save_pretrained(folder)
        StudentProcessor.of(looker.student, looker.tokenizer).save_pretrained(folder)

    replace_folder(out / "student", save)
    score(looker, train, heldout, config.batch_size, out)


def _with_truth(samples: Sequence[Sample]) -> list[Sample]:
    known = [s for s in samples if s.info.get("truth", {}).get("captions") is not None]
    if not known:
        raise ValueError(
            f"finetune.task truth: got {len(samples)} samples, none of which says whether its "
            "sentence is true; expected a source with true and false sentences, such as nlvr"
        )
    return known


def _train(looker: Predictor, samples: list[Sample], config: FinetuneConfig, seed: int) -> None:
    """AdamW over all parameters; pictures and sentences in a seeded order, epoch after epoch."""
    optimizer = torch.optim.AdamW(
        looker.student.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    looker.student.train()
    batches = _batches(len(samples), config.batch_size, seed)
    with Progress("finetune", total=config.num_steps, unit="steps") as progress:
        for step in range(config.num_steps):
            batch = [samples[row] for row in next(batches)]
            loss = F.cross_entropy(_logits(looker, batch), _labels(batch))
            if not torch.isfinite(loss):
                keys = ", ".join(sample.key for sample in batch)
                raise FloatingPointError(f"step {step}: the loss is {loss.item()} on {keys}")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(looker.student.parameters(), config.clip_norm)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            progress.advance(loss=loss.item())


def _rate(step: int, config: FinetuneConfig) -> float:
    share = (step + 1) / (config.num_steps + 1)
    return min(share / WARMUP, (1 - share) / (1 - WARMUP))


def _batches(num_samples: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each batch; every sample once an epoch, the last batch of an epoch may be smaller."""
    for epoch in range(10**9):
        order = np.random.default_rng([seed, epoch]).permutation(num_samples)
        for start in range(0, num_samples, batch_size):
            yield order[start : start + batch_size]


def _logits(looker: Predictor, samples: Sequence[Sample]) -> torch.Tensor:
    """The matching head on each sample's picture with its first caption: [B, 2]."""
    tokens, _ = looker.read(sample.info["captions"][0] for sample in samples)
    picture = torch.arange(len(samples))
    return looker.student.match(looker.see(samples), picture=picture, tokens=tokens)


def _labels(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.tensor([int(sample.info["truth"]["captions"][0]) for sample in samples])


@torch.no_grad()
def score(
    looker: Predictor,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    batch_size: int,
    out: Path,
) -> None:
    """Accuracy on held-out pairs, beside always answering what is commoner in training."""
    predictions = []
    for start in range(0, len(heldout), batch_size):
        batch = heldout[start : start + batch_size]
        true_probability = _logits(looker, batch).softmax(dim=-1)[:, 1]
        for sample, probability in zip(batch, true_probability.tolist()):
            predictions.append(
                {
                    "key": sample.key,
                    "sentence": sample.info["captions"][0],
                    "true": bool(sample.info["truth"]["captions"][0]),
                    "probability": round(probability, 4),
                }
            )
    right = [(p["probability"] > 0.5) == p["true"] for p in predictions]
    commoner = _labels(train).float().mean().item() > 0.5
    majority = [p["true"] == commoner for p in predictions]
    lines = "".join(json.dumps(prediction) + "\n" for prediction in predictions)
    write_text(out / "predictions.jsonl", lines)
    scores = {"value": sum(right) / len(right), "chance": sum(majority) / len(majority)}
    write_json(
        out / "scores.json",
        {"truth_accuracy": {**scores, "num": len(right), "num_train": len(train)}},
    )
