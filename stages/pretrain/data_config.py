"""The recipe's settings of pretraining's data."""

from __future__ import annotations

from dataclasses import dataclass

from boxless.errors import BoxlessError

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
    """Where the samples come from, and what happens when one cannot be had."""

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
