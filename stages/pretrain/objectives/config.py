"""The recipe's settings of the objectives: `pretrain.mlm`, `pretrain.itm` and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boxless.errors import BoxlessError
from stages.training.config import check_choice, check_share, check_weight


@dataclass(frozen=True, kw_only=True)
class MlmConfig:
    """Masked language modelling."""

    weight: float = 1.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    probability: float = 0.15
    """Share of ordinary word pieces that are masked."""
    whole_words: bool = False
    """Mask all pieces of a word or none (ours; the released BERTs of "whole word masking")."""
    matched_only: bool = True
    """Learn only from texts that belong to their picture (ours; SOHO's code takes all texts)."""
    mean_epsilon: float = 0.0
    """Added to the number of pieces before the sum of losses is divided by it (SOHO's code: 1e-6).
    """

    def __post_init__(self) -> None:
        check_share("mlm.probability", self.probability)
        for name in ("weight", "mean_epsilon"):
            check_weight(f"mlm.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ItmConfig:
    """Image-text matching."""

    weight: float = 1.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    mismatch: float = 0.5
    """Share of pairs that get a mismatched caption."""
    negatives: Literal["random", "itc"] = "random"
    """How a mismatched caption is drawn from the micro-batch: `random`, each as likely; `itc`
    (ours; of ALBEF), by the contrastive head, so that similar captions are drawn more often."""

    def __post_init__(self) -> None:
        check_choice("itm.negatives", self.negatives, ("random", "itc"))
        check_share("itm.mismatch", self.mismatch)
        check_weight("itm.weight", self.weight)


@dataclass(frozen=True, kw_only=True)
class ItcConfig:
    """Image-text contrastive learning (ours; of ALBEF). It needs `student.itc_size` above 0."""

    weight: float = 0.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all pictures, or texts, alike."""
    start: Literal["random", "cca"] = "random"
    """How the head, and the projection of the CNN's channels to cells, start: `random`, or by `cca`
    (ours): where canonical correlation analysis finds pictures and texts to agree, in one pass over
    the training pictures. That needs published weights of both, `student.itc_pooling` mean and
    `student.neck.kind` plain."""
    cca_ridge: float = 0.3
    """What the analysis adds to the variance of each direction, in mean variances."""
    queue_size: int = 0
    """Vectors of texts, and as many of pictures, of earlier steps that are compared with too
    (ALBEF: 65536); a momentum copy of the student makes them. 0 for no queue."""
    momentum: float = 0.995
    """What the copy keeps of itself each step (ALBEF's)."""
    soft_targets: float = 0.0
    """Share of the targets that is the copy's own softmax (ALBEF: 0.4, rising from 0 over the first
    epoch); 0 for none."""
    soft_targets_steps: int = 0
    """Steps in which `soft_targets` rises from 0."""

    def __post_init__(self) -> None:
        check_choice("itc.start", self.start, ("random", "cca"))
        if self.cca_ridge <= 0:
            raise BoxlessError(f"itc.cca_ridge: got {self.cca_ridge}, expected above 0")
        check_share("itc.label_smoothing", self.label_smoothing)
        for name in ("momentum", "soft_targets"):
            check_share(f"itc.{name}", getattr(self, name))
        for name in ("queue_size", "soft_targets_steps"):
            if getattr(self, name) < 0:
                raise BoxlessError(f"itc.{name}: got {getattr(self, name)}, expected 0 or more")
        check_weight("itc.weight", self.weight)

    @property
    def has_momentum(self) -> bool:
        """Whether a momentum copy of the student is kept."""
        return bool(self.weight and (self.queue_size or self.soft_targets))


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """What of the grid is an object's, for omvm and pra. KD-VLP makes a mask of its box; no source
    says how, so all of this is ours. `evaluate` scores labels by centres and means, whatever stands
    here."""

    min_overlap: float | None = None
    """Least share of a cell that the box covers, 0 for any; null takes cells whose centre it
    holds."""
    pooling: Literal["mean", "overlap"] = "mean"
    """How the fusion's outputs at its cells become one vector: their `mean`, or weighted by the
    `overlap` of cell and box."""

    def __post_init__(self) -> None:
        if self.min_overlap is not None:
            check_share("regions.min_overlap", self.min_overlap)


@dataclass(frozen=True, kw_only=True)
class OmvmConfig:
    """Object-guided masked vision modelling."""

    weight: float = 1.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    num_objects: int = 1
    """Objects drawn for each pair (ours); fewer where the picture has fewer."""
    draw: Literal["uniform", "score", "area"] = "uniform"
    """Which (ours): each as likely, or in proportion to its score, or to its number of cells."""
    mask_probability: float = 0.5
    """Share of drawn objects whose cells are masked; the others are predicted unmasked
    (ours, after BERT's rule of leaving some words; the paper's masking is 1)."""
    label_weight: float = 1.0
    """Factor of the label loss within the objective (ours)."""
    feature_weight: float = 1.0
    """Factor of the feature loss within the objective (ours)."""
    feature_loss: Literal["l2", "smooth_l1", "cosine"] = "l2"
    """Mean square of the difference, the paper's; or (ours) smooth L1, with its bend at 1; or 1 -
    cosine, which is half the square between both brought to length 1."""
    soft_label: bool = True
    """Learn the teacher's K best classes with their scores, not only its first (ours)."""
    matched_only: bool = True
    """Learn only where the text belongs to the picture (ours)."""

    def __post_init__(self) -> None:
        if self.num_objects < 1:
            raise BoxlessError(f"omvm.num_objects: got {self.num_objects}, expected at least 1")
        check_share("omvm.mask_probability", self.mask_probability)
        for name in ("weight", "label_weight", "feature_weight"):
            check_weight(f"omvm.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class PraConfig:
    """Phrase-region alignment."""

    weight: float = 1.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    target_temperature: float = 0.05
    """Divides linguistic similarities (ours); low values make the target one-sided."""
    min_similarity: float | None = 0.3
    """A phrase whose best object is less similar than this is left out, as the teacher found no
    object for it (ours); null takes every phrase."""
    score_weight: bool = False
    """Weigh each object's target by the teacher's score of it (ours)."""
    region: str = "cell"
    """`object` as the paper: regions are the teacher's objects; `cell` (ours): every cell is a
    region, so that cells of no object count as wrong."""
    divergence: Literal["forward", "reverse"] = "forward"
    """KL(target || student), or KL(student || target), for regions `object` only (ours: the paper's
    direction is not known)."""
    matched_only: bool = True
    """Always: a mismatched caption's phrases have no similarities with the picture, which are made
    offline."""

    def __post_init__(self) -> None:
        if self.region not in ("object", "cell"):
            raise BoxlessError(f"pra.region: got {self.region!r}, expected object or cell")
        if self.divergence == "reverse" and self.region == "cell":
            raise BoxlessError(
                "pra.divergence: got reverse with region cell, expected forward; the target is 0 "
                "at cells of no object, and the reverse divergence infinite"
            )
        if not self.matched_only:
            raise BoxlessError(
                "pra.matched_only: got false, expected true; distill compares the phrases of a "
                "caption with the objects of its own picture, so a mismatched text has no target"
            )
        if self.target_temperature <= 0:
            raise BoxlessError(
                f"pra.target_temperature: got {self.target_temperature}, expected above 0"
            )
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise BoxlessError(
                f"pra.min_similarity: got {self.min_similarity}, expected a cosine, -1 to 1, or "
                "null; above 1 no phrase would be learned from"
            )
        check_weight("pra.weight", self.weight)


@dataclass(frozen=True, kw_only=True)
class MvmConfig:
    """Masked visual modelling; it needs `student.neck` of kind soho."""

    weight: float = 0.0
    """Factor of the loss in the sum; 0 leaves the objective out. soho-toy and soho-r101 have 0.1
    (SOHO's code: 1): a temperature of 0.1 makes gradients ten times as large, and at weight 1 they
    delayed image-text matching on the toy data."""
    rule: Literal["share", "released"] = "share"
    """What is masked: codes of each pair's own until `share` of its cells is (ours), or `released`:
    the code of one cell for the whole batch."""
    share: float = 0.15
    """Share of a picture's cells to mask, by rule `share` (ours, BERT's for words)."""
    probability: float = 0.25
    """Chance of a pair to be masked (ours; SOHO's code: 0.015). What is masked in a pair is
    masked for all other objectives too, and masked codes are whole objects."""
    temperature: float = 0.1
    """Divides cosines of output and code (ours; SOHO's code has none, 1: the loss can then hardly
    fall below ln K - 1)."""
    matched_only: bool = True
    """Learn only where the text belongs to the picture (ours; SOHO's code takes all pairs)."""
    mean_epsilon: float = 0.0
    """Added to the number of cells before the sum of losses is divided by it (SOHO's code: 1e-6).
    """

    def __post_init__(self) -> None:
        for name in ("share", "probability"):
            check_share(f"mvm.{name}", getattr(self, name))
        if self.share >= 0.5:
            raise BoxlessError(f"mvm.share: got {self.share}, expected below 0.5")
        if self.temperature <= 0:
            raise BoxlessError(f"mvm.temperature: got {self.temperature}, expected above 0")
        for name in ("weight", "mean_epsilon"):
            check_weight(f"mvm.{name}", getattr(self, name))
