"""Settings of the neck, which makes cells of the CNN's output.

The `soho` neck has two ways to be set. Its defaults are what we hold to be right; the released code
of SOHO (researchmm/soho, 95824a8), with its faults, is the other value of every field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Tag

from boxless.errors import BoxlessError
from stages.section_kinds import by_kind


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """SOHO's visual dictionary."""

    num_codes: int = 64
    """Entries K (SOHO: 2048 for its width of 768)."""
    start: Literal["data", "random"] = "data"
    """`data` (ours): codes are cells of the first steps, chosen far from each other. `random`
    (released): noise, which the first update overwrites, and with zeros where no cell came."""
    decay: float = 0.99
    """What stays of a code's moving average in an update. 0.99 is the end that the released code
    sets for its rising decay; as nothing ever raises it, it stays at 0.4 there."""
    smoothing: float = 0.0
    """Laplace smoothing of a code's count (released: 1e-5). It shrinks unused codes towards 0."""
    revive_after_steps: int = 20
    """Updates without a cell after which a code starts over from a cell that is poorly predicted
    (ours); 0 for never (released)."""
    update: Literal["step", "forward"] = "step"
    """`step` (ours): once an optimizer step, from all its micro-batches on all ranks; index and
    value of a cell are of one codebook. `forward` (released): in every forward pass, between
    reading a cell's index and its value."""
    count_padding: bool = False
    """Let cells of padding move the codes (released)."""

    def __post_init__(self) -> None:
        if self.num_codes < 2:
            raise BoxlessError(f"num_codes: got {self.num_codes}, expected at least 2")
        if not 0 <= self.decay < 1:
            raise BoxlessError(f"decay: got {self.decay}, expected from 0 to below 1")
        if self.smoothing < 0:
            raise BoxlessError(f"smoothing: got {self.smoothing}, expected 0 or more")
        if self.revive_after_steps < 0:
            raise BoxlessError(
                f"revive_after_steps: got {self.revive_after_steps}, expected 0 (never) or more"
            )
        if self.update == "forward" and (self.start == "data" or self.revive_after_steps):
            raise BoxlessError(
                f"update: got forward with start {self.start} and revive_after_steps "
                f"{self.revive_after_steps}, expected step; codes come from the cells of a whole "
                "step. The released way is forward, random and 0"
            )


@dataclass(frozen=True, kw_only=True)
class PlainNeckConfig:
    """Pooling and a 1x1 convolution; a type embedding; DETR's positions, in cells."""

    kind: Literal["plain"] = "plain"


@dataclass(frozen=True, kw_only=True)
class SohoNeckConfig:
    """SOHO's: pooling, 1x1 convolution and BatchNorm, visual dictionary, gate, positions."""

    kind: Literal["soho"] = "soho"
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    batch_norm: Literal["local", "sync"] = "local"
    """Statistics of the neck's BatchNorms: of the rank's own cells, or of all ranks' (released;
    PyTorch has it on GPUs only)."""
    width_mask: Literal["width", "height"] = "width"
    """Which size decides the columns that are padding: the picture's width among the padded width,
    or (released) among the padded height, which masks columns of upright pictures."""
    count_captions: bool = False
    """Count a picture's cells once for each of its captions in all statistics (released)."""
    drop_edge: bool = False
    """Pad pictures to the CNN's stride only, so that pooling drops an odd last row or column
    (released)."""
    keep_padding_blank: bool = True
    """Keep padding beyond a picture's own canvas zero in the CNN, so that what else is in a batch
    changes nothing; false lets the CNN turn it into features that border cells read (released)."""


NeckConfig = Annotated[
    Annotated[PlainNeckConfig, Tag("plain")] | Annotated[SohoNeckConfig, Tag("soho")],
    by_kind("plain"),
]


def neck_from_json(fields: dict[str, Any]) -> NeckConfig:
    """The config whose `dataclasses.asdict` is `fields`, as a student's config.json holds it.

    Raises ValueError on fields of another version.
    """
    try:
        if fields["kind"] == "plain":
            return PlainNeckConfig(**fields)
        dictionary = DictionaryConfig(**fields["dictionary"])
        return SohoNeckConfig(**{**fields, "dictionary": dictionary})
    except (KeyError, TypeError) as error:
        raise BoxlessError(
            f"neck in config.json: got {fields}, expected the fields of kind plain or soho "
            f"({error!r}); a newer Boxless may have written it: install that version"
        ) from None
