"""The recipe's settings of pretraining's data."""

from __future__ import annotations

from dataclasses import dataclass

from boxless.errors import BoxlessError
from sharding.order.mixture import LONGEST_CYCLE
from stages.training.config import check_share

ON_FAULT = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of object shards."""

    folder: str
    """A folder, or a URL that fsspec knows (s3://, gs://, https:// ...), of finished shards."""
    split: str = "train"
    """The split of its catalog to read."""
    weight: int | None = None
    """Its micro-batches in every cycle of as many as all weights together; all sources have one or
    none has. Without weights the sources are mixed as one set."""

    def __post_init__(self) -> None:
        if not self.folder:
            raise BoxlessError("folder is empty; expected a folder or URL of finished shards.")
        if self.weight is not None and self.weight < 1:
            raise BoxlessError(f"weight: got {self.weight}, expected at least 1, or none")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from, and what happens when one cannot be read."""

    sources: tuple[SourceConfig, ...] = ()
    """Sets of object shards of one teacher, mixed; empty for the run's own."""
    cache_bytes: int = 1 << 30
    """Of what a rank keeps, on local disk, of shards that lie behind a URL."""
    on_fault: str = "stop"
    """A sample that is damaged or gone: `stop` the run, or `skip` it, say so and count it."""
    max_skipped: int = 1000
    """Skipped samples after which the run stops all the same."""
    stall_seconds: float = 60.0
    """A rank that waits longer for data says which worker does what, on which shard."""

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "max_skipped"):
            if getattr(self, name) < 0:
                raise BoxlessError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.on_fault not in ON_FAULT:
            raise BoxlessError(f"on_fault: got {self.on_fault!r}, expected one of {ON_FAULT}")
        if self.stall_seconds <= 0:
            raise BoxlessError(f"stall_seconds: got {self.stall_seconds}, expected more than 0")
        if len({source.weight is None for source in self.sources}) > 1:
            raise BoxlessError(
                "sources: got some with a weight and some without, expected all alike"
            )
        total = sum(source.weight or 0 for source in self.sources)
        if total > LONGEST_CYCLE:
            raise BoxlessError(
                f"sources: got weights whose sum is {total}, expected at most {LONGEST_CYCLE}; divide "
                "all by the same number"
            )


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
