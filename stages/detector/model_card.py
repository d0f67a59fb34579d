"""The model card of a teacher's folder.

It does not change what the teacher detects, so it is not in the fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass

from boxless.errors import BoxlessError

TRAINED_HERE = "boxless teach"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where a teacher is from.

    family: the family of checkpoints it was read as (`families.py`), or "boxless teach".
    source, source_sha256: name and SHA-256 of the checkpoint; null for one trained here.
    license: what one may do with it, in free text; "unknown" has to be said as well.
    """

    family: str = TRAINED_HERE
    source: str | None = None
    source_sha256: str | None = None
    license: str = "trained here: that of the pictures it was trained on"

    def __post_init__(self) -> None:
        if not self.family:
            raise BoxlessError("family: got no text, expected where the weights are from")
        if not self.license.strip() or len(self.license.splitlines()) > 1:
            raise BoxlessError(
                f"license: got {self.license!r}, expected a line of text, such as the name of a "
                "license and where to find it; say 'unknown' where you do not know"
            )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a teacher is: its labels, attributes, length of a feature, and weights."""

    num_labels: int
    num_attributes: int
    feature_size: int
    num_parameters: int


def rows(card: Card, sizes: Sizes, fingerprint: str) -> dict[str, str]:
    """The lines that people read, by what they are called."""
    return {
        "family": card.family,
        "checkpoint": card.source or "none: it was trained here",
        **({"SHA-256": card.source_sha256} if card.source_sha256 else {}),
        "license": card.license,
        "labels": f"{sizes.num_labels:,}",
        "attributes": f"{sizes.num_attributes:,}" if sizes.num_attributes else "none",
        "feature size": f"{sizes.feature_size:,}",
        "parameters": f"{sizes.num_parameters:,}",
        "fingerprint": fingerprint,
    }


def page(card: Card, sizes: Sizes, fingerprint: str) -> str:
    """CARD.md."""
    lines = [f"- {name}: {text}" for name, text in rows(card, sizes, fingerprint).items()]
    return (
        "\n".join(
            [
                "# A teacher of Boxless",
                "",
                "A Faster R-CNN that labels pictures: its net is in config.json, its weights are in",
                "model.safetensors and the names of its labels and attributes, by number and with synonyms",
                "between commas, in names.json. `boxless teacher` on this folder checks the three and",
                "prints this page; a recipe uses it as `teach.given`.",
                "",
                *lines,
            ]
        )
        + "\n"
    )
