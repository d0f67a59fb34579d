"""Transfer as the recipe gives it. Reached as `recipe.finetune` and `recipe.evaluate`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Training a student on a task."""

    task: str | None = None
    """`truth` (is the sentence true of the picture? NLVR) or null for none."""
    num_steps: int = 400
    """Optimizer steps."""
    batch_size: int = 32
    """Picture-sentence pairs a step."""
    lr: float = 3e-4
    """Peak AdamW rate of all parameters; rises over a tenth of the steps, then falls linearly."""
    weight_decay: float = 0.01
    """AdamW decay."""
    clip_norm: float = 2.0
    """Largest gradient norm (VILLA's VCR recipe has 2)."""
    num_threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""

    def __post_init__(self) -> None:
        if self.task not in (None, "truth"):
            raise ValueError(f"task: got {self.task!r}, expected truth or null")
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


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
    pairs_per_batch: int = 256
    """Picture-text pairs a forward pass."""
    shortlist: int = 0
    """With a contrastive head: candidates a picture, and a text, that the matching head scores too
    (ALBEF); 0 for the contrastive head alone. Without that head the matching head scores all."""
    itm_weight: float = 1.0
    """What the matching head's log odds count beside the contrastive head's logits (ours)."""
    num_shown: int = 12
    """Examples kept for the report."""
    num_threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""

    def __post_init__(self) -> None:
        for name in ("shortlist", "itm_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.split not in EVALUATED_SPLITS:
            raise ValueError(
                f"split: got {self.split!r}, expected one of {', '.join(EVALUATED_SPLITS)}"
            )
        for name in ("num_pictures", "captions_per_picture", "pairs_per_batch", "num_shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")

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
