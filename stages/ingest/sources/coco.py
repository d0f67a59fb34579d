"""Pictures in folders with captions, and perhaps boxes and phrases, in files of COCO's layout or
Karpathy's.

Split by split (`ingest.splits`), each with files of its own; or in one set of files, whose pictures
go to the split that Karpathy's JSON says, or that is drawn.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from stages.ingest.files import (
    describe_folder,
    list_pictures,
    open_folder,
    read_picture,
    size_bytes,
)
from stages.ingest.sources.caption_files import CaptionedImage, CaptionFile, id_of, read_captions
from stages.ingest.sources.coco_instances import ImageBoxes, Instances, read_instances
from stages.ingest.sources.phrase_files import PhraseFile, check_phrases, read_phrases
from stages.ingest.sources.source import (
    DroppedRecords,
    Failure,
    Picture,
    SourceError,
    inputs_fingerprint,
    safe_key,
    shown,
)
from stages.ingest.splits import SplitRule


@dataclass(frozen=True, kw_only=True)
class CocoFiles:
    """The files of one split, or of all: the folder of the pictures, captions, and perhaps boxes
    and phrases. split: ours, None where the captions file or a draw decides; word: the recipe's.
    images_field: what the recipe calls the folder."""

    images: str
    captions: str
    instances: str | None = None
    phrases: str | None = None
    split: str | None = None
    word: str = ""
    images_field: str = "ingest.root"


class CocoSource:
    """The pictures that captions files name, with boxes and phrases where they are given.

    A key is the file name without its ending; where two splits have different pictures of one name,
    the later one's key begins with the split's word. Pictures that no captions file names, and
    captions of pictures that it does not list, are inputs that failed. Raises SourceError at once
    where paths or files are not what they should be, or one that was given gives nothing.
    """

    attribute_names: Sequence[str] = ()

    def __init__(self, files: Sequence[CocoFiles], *, split_rule: SplitRule) -> None:
        self._split_rule = split_rule
        self.dropped = DroppedRecords()
        self.warnings: list[str] = []
        self._labels: dict[str, None] = {}
        by_split = [_Part(part, self).inputs() for part in files]
        self._inputs = _with_unique_keys(by_split, files)

    @property
    def label_names(self) -> Sequence[str]:
        """Category names by rising id, those of the first file first; () without instances."""
        return list(self._labels)

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input an entry of `images`, a picture without an entry, a missing entry; by key."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of names and sizes of all pictures and of all that the files say about them."""
        return inputs_fingerprint(self._inputs)

    def add_labels(self, names: Sequence[str]) -> None:
        """Take over the category names of an instances file."""
        self._labels.update(dict.fromkeys(names))

    def split_of(self, part: CocoFiles, image: CaptionedImage) -> str:
        """The split of a picture of `part`; "" for none of ours."""
        if part.split is not None and image.split is None:
            return part.split
        return self._split_rule.of(image.split, group=image.image_id)


class _Part:
    """The inputs of one set of files."""

    def __init__(self, files: CocoFiles, source: CocoSource) -> None:
        self._files, self._source = files, source
        self._root = open_folder(
            files.images, field=files.images_field, expected="the folder of the pictures"
        )
        self._captions = read_captions(files.captions)
        source.dropped.merge(self._captions.dropped)
        self._instances = self._read_instances(self._captions)
        self._phrases = self._read_phrases()

    def inputs(self) -> list[Picture | Failure]:
        """The inputs, in no order that means anything."""
        found: list[Picture | Failure] = [self._input(image) for image in self._captions.images]
        if all(isinstance(i, Failure) or i.size_bytes < 0 for i in found):
            origin = next((i.origin for i in found if isinstance(i, Picture)), "all failed")
            raise SourceError(
                f"{self._files.images_field} is {self._files.images!r}, where not one of the "
                f"{len(found)} pictures is that {self._files.captions} names (one of them: "
                f"{shown(origin)}; {describe_folder(self._root)}); expected the folder of just "
                "these pictures"
            )
        for name, reason in self._captions.failed:
            found.append(Failure(key=key_of(name), reason=reason))
        named = {str(PurePosixPath(n)) for i in self._captions.images for n in i.file_names}
        named |= {str(PurePosixPath(name)) for name, _ in self._captions.failed}
        named |= {str(PurePosixPath(i.origin)) for i in found if isinstance(i, Picture)}
        for name in list_pictures(self._root):
            if name not in named:
                reason = f"no caption names this picture: {shown(name)}"
                found.append(Failure(key=key_of(name), reason=reason))
        for image_id, number in self._captions.orphans:
            reason = f"missing picture: {number} captions are of image id {image_id}, "
            reason += 'which "images" does not list'
            found.append(Failure(key=safe_key(f"image-id-{image_id}"), reason=shown(reason)))
        return found

    def _input(self, image: CaptionedImage) -> Picture | Failure:
        name, num_bytes = self._find(image)
        split = self._source.split_of(self._files, image)
        if not split:
            reason = f"of no split: {shown(str(image.split))}, which ingest.splits does not have"
            return Failure(key=key_of(name), reason=reason)
        boxes = self._boxes_of(image, name)
        truth = dict(boxes.truth) if boxes else None
        notes = list(boxes.notes) if boxes else []
        if self._instances and image.image_id in self._instances.others:
            notes.append(self._instances.others[image.image_id])
        if self._phrases is not None and boxes and truth is not None:
            phrases = self._phrases.of_image.get(id_of(image.shown_id) or "")
            if phrases is None:
                notes.append("no phrases: the phrases file has no line of this picture")
            fitted, phrase_notes = check_phrases(
                phrases or [[] for _ in image.captions], image.captions, len(boxes.row_of)
            )
            truth["phrases"] = [[boxes.renumbered(p) for p in several] for several in fitted]
            notes += phrase_notes
        return Picture(
            key=key_of(name),
            split=split,
            read=functools.partial(read_picture, self._root, name),
            captions=image.captions,
            fields=self._fields(image, name),
            truth=truth,
            size_px=boxes.size_px if boxes else None,
            origin=name,
            size_bytes=num_bytes,
            notes=tuple(notes),
        )

    def _fields(self, image: CaptionedImage, name: str) -> dict[str, object]:
        shown_id = image.shown_id
        fields: dict[str, object] = {
            "image_id": shown(shown_id) if isinstance(shown_id, str) else shown_id,
            "source": "coco",
            "file_name": shown(name),
        }
        if image.split is not None:
            fields["corpus_split"] = shown(image.split)
        if image.coco_id is not None:
            fields["coco_id"] = image.coco_id
        return fields

    def _find(self, image: CaptionedImage) -> tuple[str, int]:
        """(file name, bytes) of a picture; its first name and -1 where there is none."""
        for name in (*image.file_names, *_other_spellings(image.file_names)):
            if (num_bytes := size_bytes(self._root, name)) >= 0:
                return name, num_bytes
        return image.file_names[0], -1

    def _boxes_of(self, image: CaptionedImage, name: str) -> ImageBoxes | None:
        """By id; Karpathy's files have ids of their own, so there by the file's name."""
        if self._instances is None:
            return None
        if self._captions.is_karpathy:
            return self._instances.of_name.get(PurePosixPath(name).name)
        return self._instances.of_image.get(image.image_id)

    def _read_instances(self, captions: CaptionFile) -> Instances | None:
        if self._files.instances is None:
            return None
        images = [] if captions.is_karpathy else captions.images
        instances = read_instances(self._files.instances, images=images)
        self._source.add_labels(instances.label_names)
        self._source.dropped.merge(instances.dropped)
        return instances

    def _read_phrases(self) -> PhraseFile | None:
        if self._files.phrases is None:
            return None
        found = read_phrases(self._files.phrases)
        known = {id_of(image.shown_id) for image in self._captions.images}
        if known.isdisjoint(found.of_image):
            raise SourceError(
                f"ingest.phrases ({self._files.phrases}) has no image id in common with "
                f"{self._files.captions}; expected the two files of the same pictures"
            )
        self._source.dropped.merge(found.dropped)
        for image_id in sorted(found.of_image.keys() - known):
            self._source.dropped.add("line of phrases whose picture has no captions", image_id)
        return found


def _other_spellings(names: Sequence[str]) -> list[str]:
    """The names as other systems write them: accents as letters of their own (macOS) or not, and
    folders parted by backslashes (Windows)."""
    spelled = [
        unicodedata.normalize(form, name.replace("\\", "/") if slashes else name)
        for name in names
        for slashes in (False, True)
        for form in ("NFC", "NFD")
    ]
    return [name for name in dict.fromkeys(spelled) if name not in names]


def _with_unique_keys(
    by_split: Sequence[list[Picture | Failure]], files: Sequence[CocoFiles]
) -> list[Picture | Failure]:
    """All inputs by key. The order spreads failed inputs over the shards; the sort is stable, so
    that of two equal keys the one that comes first stays first."""
    inputs: list[Picture | Failure] = []
    size_of: dict[str, int] = {}
    for part, several in zip(files, by_split, strict=True):
        taken = dict(size_of)
        for i in several:
            if isinstance(i, Picture):
                # Of one name and another length: another picture, not one that is in two splits.
                if taken.get(i.key, i.size_bytes) != i.size_bytes:
                    i = replace(i, key=safe_key(f"{part.word}-{i.key}"))
                size_of.setdefault(i.key, i.size_bytes)
            inputs.append(i)
    return sorted(inputs, key=lambda i: i.key)


def key_of(file_name: str) -> str:
    """A file name, relative to the root, as a key: without its ending, made safe."""
    path = PurePosixPath(file_name)
    return safe_key(str(path.parent / path.stem))


def coco_files(
    *,
    root: str,
    images: str | None,
    captions: str,
    instances: str | None,
    phrases: str | None,
    splits: dict[str, str],
) -> list[CocoFiles]:
    """The files that a recipe's paths mean, a set a split; see IngestConfig. Held-out ones first,
    so that a picture which is in two splits is not trained on.

    splits: {our split: the words that {split} stands for, joined by "+"}. Without {split} in
    `captions` there is one set of files, whose layout has to know the splits.
    """
    field = "ingest.images" if images else "ingest.root"
    paths = (images or root, captions, instances, phrases)
    if "{split}" not in captions:
        return [CocoFiles(**_filled(paths, root=root, word=""), images_field=field)]
    order = sorted(splits, key=("heldout", "test", "train").index)
    return [
        CocoFiles(
            **_filled(paths, root=root, word=word), split=split, word=word, images_field=field
        )
        for split in order
        for word in splits[split].split("+")
    ]


def _filled(paths: tuple[str | None, ...], *, root: str, word: str) -> dict[str, Any]:
    """CocoFiles' paths with {root} and {split} filled in. Not by str.format: names may have
    braces."""
    names = ("images", "captions", "instances", "phrases")
    return {
        name: path and path.replace("{root}", str(Path(root))).replace("{split}", word)
        for name, path in zip(names, paths, strict=True)
    }
