"""VQA 2.0: answer a question about a picture (Goyal et al., CVPR 2017).

A classifier over the common answers of the training set, trained by binary cross-entropy on soft
targets: what an answer would score, by the number of humans who gave it (Teney et al., CVPR 2018).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from boxless.errors import BoxlessError
from stages.transfer.example import Example
from stages.transfer.metrics.vqa_accuracy import question_accuracy, soft_targets, vqa_score
from stages.transfer.metrics.vqa_normalize import normalize
from stages.transfer.outcomes import Outcome
from stages.transfer.readers.records import TaskData
from stages.transfer.readers.vqa import read_vqa
from stages.transfer.task_batch import TaskBatch
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.tasks.task import Scores, Task

MIN_COUNT = 9
NUM_SHOWN = 3


class VqaTask(Task):
    """VQA accuracy: overall, and by answer type. The state holds the answers, in a fixed order."""

    name = "vqa"
    score_name = "vqa_accuracy"

    @staticmethod
    def read(data: TaskDataConfig, split: str) -> TaskData:
        """From the questions and the annotations of a split, pictures named as COCO's."""
        annotations = getattr(data, f"{split}_annotations")
        if split == "train":
            annotations = data.path("annotations", split)
        questions = Path(data.path("", split))
        return read_vqa(
            questions,
            Path(annotations) if annotations else None,
            Path(data.path("images", split)),
            image_name=f"COCO_{_image_split(questions)}_{{:012d}}.jpg",
            max_missing=data.max_missing,
        )

    @classmethod
    def prepare(cls, train: Sequence[Example]) -> dict[str, Any]:
        """Answers that are given at least nine times (3129 on train and val), or, of fewer than
        nine thousand questions, all; commonest first."""
        counts = Counter(normalize(e.label["multiple_choice_answer"]) for e in train)
        least = MIN_COUNT if len(train) >= 1000 * MIN_COUNT else 1
        common = [(answer, n) for answer, n in counts.items() if n >= least]
        return {"answers": [a for a, _ in sorted(common, key=lambda item: (-item[1], item[0]))]}

    @property
    def num_outputs(self) -> int:
        """One an answer."""
        return len(self.state["answers"])

    def loss(self, logits: torch.Tensor, batch: TaskBatch) -> torch.Tensor:
        """Binary cross-entropy, summed over answers, averaged over questions."""
        rows = {answer: row for row, answer in enumerate(self.state["answers"])}
        targets = torch.zeros_like(logits, dtype=torch.float)
        for number, example in enumerate(batch.examples):
            for answer, score in soft_targets(example.label["answers"]).items():
                if answer in rows:
                    targets[number, rows[answer]] = score
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        return loss / len(batch.examples)

    def predict(self, logits: torch.Tensor, batch: TaskBatch) -> list[Any]:
        """{"answer", "best": the most probable answers with their probabilities}."""
        found = []
        for row in logits.double().sigmoid():
            values, places = row.topk(min(NUM_SHOWN, len(row)))
            best = [(self.state["answers"][i], v) for i, v in zip(places.tolist(), values.tolist())]
            found.append({"answer": best[0][0], "best": best})
        return found

    def score(self, examples: Sequence[Example], predictions: Mapping[str, Any]) -> Scores:
        """In shares of 1; chance is the training set's commonest answer to everything."""
        annotations = [e.label for e in examples]
        found = vqa_score(annotations, {int(e.id): predictions[e.id]["answer"] for e in examples})
        constant = {int(e.id): self.state["answers"][0] for e in examples}
        chance = vqa_score(annotations, constant)
        scores = {self.score_name: _entry(found.overall, chance.overall, len(examples))}
        for kind, value in found.per_answer_type.items():
            scores[f"vqa_{kind}"] = _entry(
                value,
                chance.per_answer_type[kind],
                sum(annotation["answer_type"] == kind for annotation in annotations),
            )
        return scores

    def outcome(self, example: Example, prediction: Any) -> Outcome:
        """Right as far as the humans agree."""
        answer, confidence = prediction["best"][0]
        return Outcome(
            said=answer,
            truth=example.label["multiple_choice_answer"],
            right=question_accuracy(answer, example.label["answers"]),
            confidence=confidence,
        )

    def submission(
        self, examples: Sequence[Example], predictions: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The list that EvalAI takes."""
        answers = [
            {"question_id": int(e.id), "answer": predictions[e.id]["answer"]} for e in examples
        ]
        return "vqa_results.json", json.dumps(answers)


def _entry(percent: float, chance: float, num: int) -> dict[str, Any]:
    return {"value": percent / 100, "chance": chance / 100, "num": num}


def _image_split(questions: Path) -> str:
    """COCO's split in a question file's name; test-dev's pictures are test2015's."""
    for split in ("train2014", "val2014", "test2015"):
        if split in questions.name or split in questions.name.replace("-dev", ""):
            return split
    raise BoxlessError(
        f"{questions}: got a name without train2014, val2014 or test2015, expected the original "
        "file's, which says how its pictures are called"
    )
