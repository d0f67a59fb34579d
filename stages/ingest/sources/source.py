"""The interface between corpora and the ingest runner, and what all sources share.

A source is a class in a file of this folder; `stages.ingest.run` opens the one the recipe names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from boxless.errors import BoxlessError
from sharding.format.schema import Failure
from sharding.writing.atomic import canonical_json

MAX_PLAIN_KEY = 80
NUM_EXAMPLES = 3
MAX_EXAMPLE_CHARACTERS = 120
_PLAIN_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_PLAIN_KEY}}}")


class SourceError(BoxlessError):
    """The corpus as a whole is not what the recipe says: a wrong path or file, nothing in it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One input of a corpus, before its bytes are read.

    key: unique in the dataset, as `sharding.format.schema.check_key` requires.
    split: "train", "heldout" or "test".
    read: gives the file's bytes; raises PictureError where there are none. Called from threads.
    captions: sentences about the picture; blank ones are dropped later, with a note.
    fields: what else goes into the sample's json: `image_id`, `source` and the source's own.
    truth: boxes (finite), labels, attributes, phrases and truth of captions where they are known.
    size_px: (width, height) that the truth was made for, where the source says so.
    origin: where the picture comes from, for messages.
    size_bytes: length of the file, -1 where there is none or it is not known yet.
    notes: what the source had to drop.
    """

    key: str
    split: str
    read: Callable[[], bytes]
    captions: tuple[str, ...]
    fields: dict[str, Any]
    truth: dict[str, Any] | None = None
    size_px: tuple[int, int] | None = None
    origin: str = ""
    size_bytes: int = -1
    notes: tuple[str, ...] = ()


class DroppedRecords(Mapping[str, int]):
    """{reason: how many} of what a corpus has that belongs to no picture, such as a broken entry of
    a file. `examples` names the first few of each reason."""

    def __init__(self) -> None:
        self.examples: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, example: str = "", *, count: int = 1) -> None:
        """Count `count` records dropped for `reason`; example: which one this is."""
        self._counts[reason] = self._counts.get(reason, 0) + count
        named = self.examples.setdefault(reason, [])
        if example and len(named) < NUM_EXAMPLES:
            named.append(shown(example[:MAX_EXAMPLE_CHARACTERS]))

    def merge(self, other: DroppedRecords) -> None:
        """Take over the counts and, as far as there is room, the examples of another."""
        for reason, count in other.items():
            self.add(reason, count=count)
            named = self.examples[reason]
            named += other.examples[reason][: NUM_EXAMPLES - len(named)]

    def __getitem__(self, reason: str) -> int:
        return self._counts[reason]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


class Source(Protocol):
    """A corpus that lists its pictures."""

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the object classes, () where there are no boxes."""

    @property
    def attribute_names(self) -> Sequence[str]:
        """Names of the attributes, () where the source has none."""

    @property
    def dropped(self) -> DroppedRecords:
        """What the corpus has that belongs to no picture, counted by reason."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know of the corpus as a whole."""

    def pictures(self) -> Sequence[Picture | Failure]:
        """Every input in a fixed order; cheap, as no picture is read. A Failure is an input of
        which it is already plain that it gives no sample."""

    def fingerprint(self) -> str:
        """Changes when anything changes that the samples are made of."""


def inputs_fingerprint(inputs: Iterable[Picture | Failure]) -> str:
    """Hash of all that is known of the inputs before they are read, in order.

    Where the files lie does not enter, so a corpus may move. Pictures enter by size, not by
    content: to read them all is most of the work that an unchanged run leaves out.
    """
    digest = hashlib.sha256()
    for i in inputs:
        if isinstance(i, Failure):
            known: list[Any] = [i.key, i.reason]
        else:
            known = [i.key, i.split, i.size_bytes, i.captions, i.fields]
            known += [i.truth, i.size_px, i.notes]
        digest.update(canonical_json(known) + b"\n")
    return digest.hexdigest()


def safe_key(name: str) -> str:
    """A key made of a name: itself where it is letters, digits, "_" and "-" and not too long.

    Else every run of other characters becomes one "_", and eight digits of the name's SHA-256
    follow, so that two names never become one key ("a b" and "a.b").
    """
    if _PLAIN_KEY.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[: MAX_PLAIN_KEY - 9]
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def clean_caption(caption: object) -> str:
    """A caption without blanks around it, as text that can be written; "" for what is no text."""
    if not isinstance(caption, str):
        return ""
    return caption.strip().encode("utf-8", "replace").decode()


def shown(name: str) -> str:
    """A name from outside that can be printed and written, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()
