"""The recipe's `pretrain` part. The formulas are in the objectives' files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from boxless.errors import BoxlessError
from stages.pretrain.data_config import AugmentConfig, DataConfig
from stages.pretrain.objectives.config import (
    ItcConfig,
    ItmConfig,
    MlmConfig,
    MvmConfig,
    OmvmConfig,
    PraConfig,
    RegionConfig,
)
from stages.training.config import TrainingConfig, check_choice, check_weight

FULL_WEIGHTS = ("fp32", "tf32", "autocast-bf16", "autocast-fp16")
"""Precisions in which the weights themselves are float32."""


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
    disk, which give many more groups and smaller batches; or `none`, all share: every micro-batch
    is full and as mixed as the data, which the contrastive loss needs, and has more padding, which
    costs little where `cnn_cache_mib` spares the CNN. A checkpoint of a version before 0.2
    continues in the order that it began with."""
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
    validated and saved (ours); null for the last weights. With precision fp32, tf32, autocast-bf16
    or autocast-fp16, and ZeRO 0, 1, 2."""

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
            self._check_full_weights(f"average_samples: got {self.average_samples}")
        if self.itc.has_momentum:
            self._check_full_weights(
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

    def _check_full_weights(self, field: str) -> None:
        """Raises ValueError, naming `field`, where no rank has full float32 weights."""
        if self.precision not in FULL_WEIGHTS or self.zero_stage == 3:
            raise BoxlessError(
                f"{field} with precision {self.precision} and zero_stage {self.zero_stage}, "
                f"expected {' or '.join(FULL_WEIGHTS)} and 0, 1 or 2, where every rank has full "
                "float32 weights; null or 0 for none"
            )
