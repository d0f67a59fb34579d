"""The split of a picture: fixed by the recipe or the corpus, else drawn by a hash.

Ours are "train" (learned from), "heldout" (scored while and after learning) and "test" (scored only
when asked for). Corpora say dev, val, validation for the second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "heldout", "test")
WORDS = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "heldout": "heldout",
    "dev": "heldout",
    "val": "heldout",
    "valid": "heldout",
    "validation": "heldout",
    "test": "test",
    "testing": "test",
}
"""What corpora call their splits, and which of ours that is."""
SPLIT_FILES = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
"""Lists of ids that some corpora have, a file a split."""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """The split of a picture.

    seed, heldout_fraction: of the draw, for pictures whose corpus has no splits of its own.
    chosen: {the corpus's word: our split} where the recipe says which goes where; words that it
    does not have go to none.
    """

    seed: int
    heldout_fraction: float
    chosen: Mapping[str, str] = field(default_factory=dict)

    def of(self, word: str | None, *, group: str) -> str:
        """The split of a picture that its corpus puts into `word`, or draws by its `group`; "" for
        none of ours."""
        if word is None:
            return draw_split(group, seed=self.seed, heldout_fraction=self.heldout_fraction)
        return self.chosen.get(word, "") if self.chosen else WORDS.get(word, "")


def draw_split(group: str, *, seed: int, heldout_fraction: float) -> str:
    """The split of a group, by a hash of seed and group: adding pictures moves no other one.

    With u = first 8 bytes of SHA-256("seed/group") / 2^64, a group is held out where
    u < heldout_fraction.
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode("utf-8", "surrogatepass")).digest()
    held_out = int.from_bytes(digest[:8], "big") / 2**64 < heldout_fraction
    return "heldout" if held_out else "train"
