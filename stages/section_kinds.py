"""Selects the kind of a recipe's section by its key ``kind``."""

from __future__ import annotations

from typing import Any

from pydantic import Discriminator


def by_kind(default: str) -> Discriminator:
    """For an annotated union of settings, each tagged with its kind: a mapping without ``kind`` is
    of the kind ``default``."""

    def kind_of(section: Any) -> Any:
        if isinstance(section, dict):
            return section.get("kind", default)
        return getattr(section, "kind", None)

    return Discriminator(kind_of)
