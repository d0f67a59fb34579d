"""Names of objects' labels and attributes, from the catalog of the shards.

A catalog may be of any origin, or missing: a class whose name is not known is shown by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names by class; empty where they are unknown."""

    labels: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def label(self, index: int) -> str:
        """The name of a label; "class 7" where it has none."""
        return self.labels[index] if 0 <= index < len(self.labels) else f"class {index}"

    def attribute_of(self, row: np.void) -> str | None:
        """That of an object (a row of sharding.format.schema.object_dtype); None where the teacher
        has no attributes, found none (a negative one), or their names are unknown."""
        if "attribute" not in (row.dtype.names or ()) or not self.attributes:
            return None
        index = int(row["attribute"])
        if index < 0:
            return None
        return self.attributes[index] if index < len(self.attributes) else f"attribute {index}"


def names_of(about: Mapping[str, Any]) -> Names:
    """The names in a catalog's `about`; none for what is not a list of texts."""
    return Names(
        labels=_texts(about.get("label_names")), attributes=_texts(about.get("attribute_names"))
    )


def _texts(names: object) -> tuple[str, ...]:
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()
