"""The recipe's `finetune` and `evaluate` parts."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import ClassVar

from boxless.errors import BoxlessError
from stages.training.config import TrainingConfig
from stages.transfer.task_config import TaskDataConfig

TASK_CLASSES = {
    "retrieval": "retrieval.RetrievalTask",
    "vqa": "vqa.VqaTask",
    "nlvr2": "nlvr.Nlvr2Task",
    "nlvr": "nlvr.NlvrTask",
    "snli_ve": "snli_ve.SnliVeTask",
    "vcr": "vcr.VcrTask",
    "grounding": "grounding.GroundingTask",
}
"""The file and class of each task in `stages.transfer.tasks`, which is heavier to import than a
recipe should be. Adding a task is a file there and a line here."""
TASK_NAMES = tuple(TASK_CLASSES)
INPUTS = ("fusion", "encoders")
OF_ENCODERS = ("vqa", "snli_ve")
HEADLESS = ("retrieval", "grounding")
ALL = "all"
"""What a recipe calls all of them."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Training a student on a task. What it shares with pretraining is in `TrainingConfig`; its
    micro-batches are of pictures (or pairs of them) with all that is asked of each."""

    section: ClassVar[str] = "finetune"

    task: str | None = None
    """`retrieval`, `vqa`, `nlvr2`, `nlvr`, `snli_ve`, `vcr` or `grounding`; `all`, each of them in
    turn, on files made from the run's image shards, beside the same network without pretraining;
    or null for none."""
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    """The task's files; all null makes them from the run's image shards: those of toy data for
    every task, those of the corpus NLVR for `nlvr`."""
    num_steps: int = 400
    micro_batch_size: int = 16
    schedule: str = "linear"
    clip_norm: float = 2.0
    """Largest gradient norm (VILLA's VCR recipe has 2)."""
    max_texts: int = 8
    """Texts of one picture in a micro-batch at most; a picture with more comes several times."""
    lr: float = 3e-4
    """Peak AdamW rate of the student; the CNN's too."""
    lr_head: float | None = None
    """Peak rate of the task's new head; null for `lr`."""
    inputs: str = "fusion"
    """What the head of `vqa` and `snli_ve` reads: `fusion`, [CLS] over text and cells; or
    `encoders` (ours), for a student whose fusion was not trained: text and picture each by itself,
    and how well they fit by the contrastive and alignment heads."""
    train_student: bool = True
    """False leaves the student as it is and trains the head alone; what the head reads is then
    computed once a picture and text, and kept in memory. For tasks with a head of their own: all
    but `retrieval` and `grounding`."""
    weight_decay: float = 0.01
    """AdamW decay; norms and biases have none."""
    new_words: int = 0
    """Words added to the vocabulary at most: the commonest of the training texts among those that
    the tokenizer cuts into pieces. For a tokenizer that was trained on a small corpus."""
    num_threads: int = 0
    """CPU threads a rank; 0 leaves PyTorch's choice in training, and is one where predictions are
    made, so that their last digit is the same on any machine and number of ranks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in (None, ALL, *TASK_NAMES):
            raise BoxlessError(
                f"task: got {self.task!r}, expected {', '.join(TASK_NAMES)}, {ALL}, or null"
            )
        if self.task == ALL and self.data.train is not None:
            raise BoxlessError(
                f"data.train: got {self.data.train!r} with task {ALL}, expected null: files are of "
                "one task, and those of all are made from the run's image shards"
            )
        if self.inputs not in INPUTS:
            raise BoxlessError(f"inputs: got {self.inputs!r}, expected {' or '.join(INPUTS)}")
        if self.inputs == "encoders" and self.task not in (None, *OF_ENCODERS):
            raise BoxlessError(
                f"inputs: got encoders with task {self.task}, expected fusion, or one of the tasks "
                f"{', '.join(OF_ENCODERS)}"
            )
        if not self.train_student and self.task in (ALL, *HEADLESS):
            raise BoxlessError(
                f"train_student: got false with task {self.task}, expected true: "
                f"{' and '.join(HEADLESS)} have no head of their own"
            )
        if self.max_texts < 1:
            raise BoxlessError(f"max_texts: got {self.max_texts}, expected at least 1")
        if self.new_words < 0:
            raise BoxlessError(f"new_words: got {self.new_words}, expected 0 or more")


EVALUATED_SPLITS = {
    "heldout": "heldout",
    "dev": "heldout",
    "val": "heldout",
    "test": "test",
    "train": "train",
}
"""What a recipe may call a split, and what the shards call it."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scoring a student on held-out pictures."""

    split: str = "heldout"
    """Whose pictures: `heldout` (also dev, val), `test` or `train`."""
    student: str | None = None
    """Folder of a student of elsewhere to score instead of the run's own."""
    num_pictures: int = 200
    """Most pictures taken; retrieval scores every picture with every text."""
    captions_per_picture: int = 1
    """Most captions taken of a picture, the first ones."""
    shortlist: int = 0
    """With a contrastive head: candidates a picture, and a text, that the matching head scores too
    (ALBEF); 0 for the contrastive head alone. Without that head the matching head scores all."""
    itm_weight: float = 1.0
    """What the matching head's log odds count beside the contrastive head's logits (ours)."""
    query_bank: bool = True
    """Retrieval by the contrastive head is normalised by the training pairs that the student keeps
    (`student.itc_bank_size`), where it does; false for the cosines alone."""
    num_shown: int = 12
    """Examples kept for the report."""
    num_threads: int = 0
    """CPU threads a rank; 0 for one, so that the last digit is the same on any machine and number
    of ranks."""

    def __post_init__(self) -> None:
        for name in ("shortlist", "itm_weight"):
            if getattr(self, name) < 0:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.split not in EVALUATED_SPLITS:
            raise BoxlessError(
                f"split: got {self.split!r}, expected one of {', '.join(EVALUATED_SPLITS)}"
            )
        for name in ("num_pictures", "captions_per_picture", "num_shown"):
            if getattr(self, name) < 1:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected at least 1")

    @property
    def split_of_shards(self) -> str:
        """The split as the shards call it."""
        return EVALUATED_SPLITS[self.split]

    @property
    def folder_name(self) -> str:
        """Where the scores go, below transfer/: of another split or student, beside the run's."""
        name = "evaluate"
        if self.split_of_shards != "heldout":
            name += f"-{self.split_of_shards}"
        if self.student is not None:
            path = PurePath(self.student)
            digest = hashlib.sha256(self.student.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            name += f"-{re.sub('[^A-Za-z0-9_-]+', '_', path.parent.name or path.name)}-{digest}"
        return name
