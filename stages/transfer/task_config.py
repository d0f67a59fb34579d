"""The recipe's `finetune.data` part: paths of a downstream task's files."""

from __future__ import annotations

from dataclasses import dataclass

from boxless.errors import BoxlessError


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """The ORIGINAL files of a task. All null: the toy data set's, made in the run folder."""

    train: str | None = None
    """The training annotations: VQA's questions, a .json or .jsonl of the others, Karpathy's file,
    or the folder of Flickr30k Entities."""
    heldout: str | None = None
    """The same of what is scored (val, dev or test); null with Karpathy's, which hold all
    splits."""
    train_annotations: str | None = None
    """VQA: the answers to `train`."""
    heldout_annotations: str | None = None
    """VQA: the answers to `heldout`; null for test files, whose predictions are written,
    unscored."""
    train_images: str | None = None
    """The folder of the training pictures; or a tar of such a folder, or a folder of image shards
    whose keys are the pictures' names without their ending."""
    heldout_images: str | None = None
    """The folder of the pictures that are scored."""
    train_ids: str | None = None
    """Entities: a file with a picture's id a line (null: all that have annotations)."""
    heldout_ids: str | None = None
    """As `train_ids`, of what is scored."""
    train_splits: tuple[str, ...] = ("train", "restval")
    """Karpathy: the splits trained on."""
    heldout_split: str = "test"
    """Karpathy: the split that is scored."""
    text_premise: bool = False
    """SNLI-VE: read the caption (sentence1) before the hypothesis. The task leaves it out."""
    nlvr_num_orders: int = 6
    """NLVR: how many of the six orders of each picture's boxes are read."""
    nlvr_num_statements: int = 0
    """NLVR: statements that are generated about each training picture from its `structured_rep`
    (ours), beside its own sentence."""
    num_folds: int = 1
    """Retrieval: folds whose recalls are averaged (COCO 1k: 5)."""
    shortlist: int = 0
    """Retrieval with a contrastive head: candidates of a picture, and of a text, that the matching
    head scores (ALBEF: 128 or 256); what that loses is given beside the scores. 0 scores all
    pairs."""
    max_missing: int = 0
    """Examples that may lack their picture; they are counted and left out."""
    num_train: int | None = None
    """At most so many training examples, the first; null for all."""
    num_heldout: int | None = None
    """At most so many that are scored, the first; null for all."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_heldout", "num_folds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BoxlessError(f"{name}: got {value}, expected at least 1")
        for name in ("max_missing", "shortlist", "nlvr_num_statements"):
            if getattr(self, name) < 0:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected 0 or more")

    def path(self, name: str, split: str) -> str:
        """The path of a split's file: `SPLIT` or `SPLIT_NAME`. ValueError where it is not given."""
        key = f"{split}_{name}" if name else split
        value = getattr(self, key)
        if value is None:
            raise BoxlessError(
                f"finetune.data.{key}: got null, expected the path of the task's files"
            )
        return value
