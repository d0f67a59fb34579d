"""The recipe's `pretrain` part. The formulas are in the objectives' files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from boxless.errors import BoxlessError
from stages.pretrain.data_config import DataConfig
from stages.training.config import TrainingConfig, check_choice, check_share, check_weight

WHOLE_WEIGHTS = ("fp32", "autocast-bf16")
"""Precisions in which the weights themselves are float32."""


@dataclass(frozen=True, kw_only=True)
class MlmConfig:
    """Masked language modelling."""

    weight: float = 1.0
    """Factor of the loss in the sum; 0 leaves the objective out."""
    probability: float = 0.15
    """Share of ordinary word pieces that are hidden."""
    whole_words: bool = False
    """Hide all pieces of a word or none (ours; the released BERTs of "whole word masking")."""
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
    (ours; of ALBEF), by the contrastive head, so that those that nearly fit come more often."""

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
class AugmentConfig:
    """Random views of the training pictures, with boxes, phrases and captions carried along (ours;
    neither paper has any). The defaults change nothing."""

    min_area: float = 1.0
    """Least share of the picture that a random crop keeps, above 0; 1 for no crop. A crop is
    stretched to the size of the whole picture."""
    max_stretch: float = 4 / 3
    """Most that a crop changes the picture's proportions, at least 1."""
    mirror: float = 0.0
    """Share of pictures that are mirrored; in their captions left and right change places. Writing
    in a picture is mirrored with it."""
    colour: float = 0.0
    """Brightness, contrast and saturation each change by a factor within this of 1, below 1."""
    min_visible: float = 0.3
    """An object of which a crop leaves a smaller share of its box is dropped."""
    num_views: int | None = None
    """Views that a picture has in all, one of them drawn each time; null draws a new one. A few
    views are what `pretrain.cnn_cache_mib` can keep. A share of `mirror` of each picture's views is
    mirrored."""

    def __post_init__(self) -> None:
        for name in ("min_area", "mirror", "colour", "min_visible"):
            check_share(f"augment.{name}", getattr(self, name))
        if not self.min_area:
            raise BoxlessError("augment.min_area: got 0, expected above 0, 1 for no crop")
        if self.colour >= 1:
            raise BoxlessError(f"augment.colour: got {self.colour}, expected below 1")
        if self.num_views is not None and self.num_views < 1:
            raise BoxlessError(
                f"augment.num_views: got {self.num_views}, expected at least 1, or null"
            )
        if self.max_stretch < 1:
            raise BoxlessError(f"augment.max_stretch: got {self.max_stretch}, expected at least 1")

    @property
    def changes_nothing(self) -> bool:
        """Whether every picture is seen as it is."""
        return self.min_area == 1 and not self.mirror and not self.colour

    @property
    def comes_again(self) -> bool:
        """Whether a later epoch sees the same views."""
        return self.changes_nothing or self.num_views is not None


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
    """A phrase whose best object is less similar than this is left out: nothing that the teacher
    saw is what it means (ours); null takes every phrase."""
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
        check_weight("pra.weight", self.weight)


@dataclass(frozen=True, kw_only=True)
class MvmConfig:
    """Masked visual modelling; it needs `student.neck` of kind soho."""

    weight: float = 0.0
    """Factor of the loss in the sum; 0 leaves the objective out. soho-toy and soho-r101 have 0.1
    (SOHO's code: 1): a temperature of 0.1 makes gradients ten times as large, and at weight 1 they
    held up image-text matching on the toy world."""
    rule: Literal["share", "released"] = "share"
    """What is hidden: codes of each pair's own until `share` of its cells is (ours), or `released`:
    the code of one cell for the whole batch."""
    share: float = 0.15
    """Share of a picture's cells to mask, by rule `share` (ours, BERT's for words)."""
    probability: float = 0.25
    """Chance of a pair to be masked (ours; SOHO's code: 0.015). What is hidden from a pair all
    other objectives miss too, and hidden codes are whole objects."""
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


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """The training run: data, objectives and optimizer; the rest is what all training has."""

    section: ClassVar[str] = "pretrain"

    data: DataConfig = field(default_factory=DataConfig)
    mlm: MlmConfig = field(default_factory=MlmConfig)
    itm: ItmConfig = field(default_factory=ItmConfig)
    itc: ItcConfig = field(default_factory=ItcConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    omvm: OmvmConfig = field(default_factory=OmvmConfig)
    pra: PraConfig = field(default_factory=PraConfig)
    mvm: MvmConfig = field(default_factory=MvmConfig)
    captions_per_picture: int = 4
    """Most captions used of a picture at a time, all on one pass of the CNN (SOHO's code: 4)."""
    visits: Literal["picture", "caption_groups"] = "picture"
    """How often a picture comes an epoch: once as a `picture`, or by `caption_groups` as often as
    its captions make groups of `captions_per_picture`, so that each caption comes once and pictures
    with many captions come more often (SOHO's code). That reads all captions once before the first
    step."""
    window_num_shards: int = 16
    """Shards whose samples are mixed with each other."""
    group_by: Literal["resized", "original", "none"] = "resized"
    """Which sizes of pictures must be alike to share a micro-batch: those after resizing; those on
    disk, which give many more groups and smaller batches (checkpoints of versions before 0.2); or
    `none`, all share: every micro-batch is full and as mixed as the data, which contrast wants, and
    pictures are padded more, which costs little where `cnn_cache_mib` spares the CNN."""
    lr_transformer: float = 2e-3
    """Peak AdamW rate of everything but the CNN (both papers' full size: 1e-4)."""
    lr_text: float | None = None
    """That of the word, position and type embeddings (ours); null for lr_transformer."""
    lr_heads: float | None = None
    """That of all but CNN, embeddings and Transformer layers (ours): what is new where those come
    from published weights; null for lr_transformer."""
    lr_alignment: float | None = None
    """That of the alignment head's maps of `student.pra_size` (ours); null for lr_heads."""
    frozen: tuple[Literal["text", "fusion", "projection", "heads"], ...] = ()
    """Parts that stay as they are (ours): `text` and `heads` as `lr_text` and `lr_heads` name them,
    `fusion` the Transformer's layers, `projection` the map from the CNN's channels to cells. For
    the CNN see `student.frozen_stages` and `student.batch_norm`, which save its backward pass
    too."""
    lr_cnn: float = 0.1
    """Peak SGD rate of the CNN (SOHO's code: 1e-2)."""
    weight_decay: float = 0.01
    """AdamW decay."""
    weight_decay_cnn: float = 1e-4
    """SGD decay."""
    decay_norms: bool = False
    """Whether norms, biases and the mask vector decay too (SOHO's code: true)."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = True
    """Nesterov's momentum for SGD (ours; SOHO's code: false)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""
    cnn_cache_mib: int = 0
    """Memory a rank, in MiB, to keep the outputs of a frozen CNN in, so that it runs once a view
    and not each epoch (ours). It needs `student.frozen_stages` of all stages, `student.batch_norm`
    frozen, and `augment.num_views` where there are random views."""
    cnn_cache_folder: str | None = None
    """A folder to keep what `cnn_cache_mib` keeps in from one start to the next, and from one run
    to another of the same CNN and pictures (ours); null for memory alone."""
    text_cache_mib: int = 0
    """Memory a rank, in MiB, to keep the encodings of captions in, where `frozen` has text and
    fusion (ours): each caption is then read once, and without dropout."""
    text_cache_folder: str | None = None
    """A folder to keep what `text_cache_mib` keeps in, as `cnn_cache_folder` does; null for memory
    alone."""
    validate_pictures: int = 0
    """Held-out pictures whose losses are measured every `validate_steps` steps, with R@1 among them
    where there is a contrastive head; 0 for none. The student of the best R@1 (of the lowest loss
    without that head) is kept in the folder `best` beside the checkpoints."""
    average_samples: int | None = None
    """Horizon, in pictures, of an exponential moving average of the weights, which is then what is
    validated and saved (ours); null for the last weights. With precision fp32 or autocast-bf16, and
    ZeRO 0, 1, 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("captions_per_picture", "window_num_shards"):
            if getattr(self, name) < 1:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for part in self.frozen:
            check_choice("frozen", part, ("text", "fusion", "projection", "heads"))
        check_choice("visits", self.visits, ("picture", "caption_groups"))
        check_choice("group_by", self.group_by, ("resized", "original", "none"))
        for name in ("lr_text", "lr_heads", "lr_alignment"):
            if getattr(self, name) is not None:
                check_weight(name, getattr(self, name))
        if self.cnn_cache_mib < 0 or (self.cnn_cache_mib and not self.augment.comes_again):
            raise BoxlessError(
                f"cnn_cache_mib: got {self.cnn_cache_mib} with augment.num_views "
                f"{self.augment.num_views}, expected 0 or more, and where there is a cache a number "
                "of views: new ones never come again"
            )
        for what in ("cnn", "text"):
            folder = getattr(self, f"{what}_cache_folder")
            if folder is not None and not getattr(self, f"{what}_cache_mib"):
                raise BoxlessError(
                    f"{what}_cache_folder: got {folder} with {what}_cache_mib 0, expected "
                    f"{what}_cache_mib above 0, or null"
                )
        check_weight("validate_pictures", self.validate_pictures)
        if self.text_cache_mib < 0 or (
            self.text_cache_mib and not {"text", "fusion"}.issubset(self.frozen)
        ):
            raise BoxlessError(
                f"text_cache_mib: got {self.text_cache_mib} with frozen {list(self.frozen)}, "
                "expected 0 or more, and where there is a cache, text and fusion frozen"
            )
        if self.average_samples is not None:
            if self.average_samples < 1:
                raise BoxlessError(
                    f"average_samples: got {self.average_samples}, expected at least 1, or null"
                )
            self._check_whole_weights(f"average_samples: got {self.average_samples}")
        if self.itc.has_momentum:
            self._check_whole_weights(
                f"itc.queue_size: got {self.itc.queue_size}, itc.soft_targets "
                f"{self.itc.soft_targets},"
            )
        objectives = (self.mlm, self.itm, self.itc, self.omvm, self.pra, self.mvm)
        if not any(objective.weight for objective in objectives):
            raise BoxlessError("every objective's weight is 0, expected at least one above 0")

    @property
    def solved_at_start(self) -> frozenset[str]:
        """Contrast, where canonical correlation analysis has found its weights."""
        return frozenset({"itc"} if self.itc.start == "cca" else ())

    def _check_whole_weights(self, field: str) -> None:
        """Raises ValueError, naming `field`, where no rank has whole float32 weights."""
        if self.precision not in WHOLE_WEIGHTS or self.zero_stage == 3:
            raise BoxlessError(
                f"{field} with precision {self.precision} and zero_stage {self.zero_stage}, "
                f"expected {' or '.join(WHOLE_WEIGHTS)} and 0, 1 or 2, where every rank has whole "
                "float32 weights; null or 0 for none"
            )
