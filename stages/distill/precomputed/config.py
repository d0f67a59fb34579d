"""The recipe's `distill.features` part: the files, and how features are joined to pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass

from boxless.errors import BoxlessError

FORMATS = ("butd-npz", "butd-tsv", "vinvl-tsv", "uniter-lmdb", "coco-json")
JOINS = ("image_id", "key", "file_name")
IDS = ("whole", "stem", "number")
DUPLICATES = ("refuse", "first")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Settings of `distill.teacher: features`.

    format: "butd-npz" (a folder of MILVLG/bottom-up-attention.pytorch's files, of either mode),
        "butd-tsv" (bottom-up attention's rows in base64, with LXMERT's columns or its own),
        "vinvl-tsv" (scene_graph_benchmark's predictions, or Oscar's features with predictions),
        "uniter-lmdb" (UNITER's image features, compressed or not), "coco-json" (detections).
    path: the file; for the .tsv and .json formats also a pattern, as "features/*/features.tsv";
        the folder of the .npz files; the folder that has LMDB's data.mdb.
    predictions: "vinvl-tsv" only: the file, or the pattern of the files, with boxes and classes,
        where `path` has none (Oscar's predictions.tsv or label.tsv); else null.
    labels: the names of the features' classes: a text file with one a line, background left out
        (objects_vocab.txt), or JSON with COCO's "categories" or VinVL's "label_to_idx". null only
        for rows without classes ("butd-tsv" with six columns): each object is then an "object" of
        score 1, from which omvm and pra learn nothing.
    attributes: the same for attributes ("attribute_to_idx" in VinVL's JSON); null leaves them out.
    feature_size: values of a feature, 2048 in nearly all such files; a "vinvl-tsv" with 6 more
        (2054) loses those, which are the box's location. null where the file has no features: each
        object then has a single 0.
    num_top: classes of the soft label. More than 1 takes class probabilities in the file, which
        "uniter-lmdb" and d2's "butd-npz" have, and "vinvl-tsv" where "scores_all" was saved.
    join: what of a sample finds its features: "image_id" or "file_name" of its json, or its "key".
    id: how much of it, and of the features' ids, has to be equal: the "whole"; the "stem" (without
        folders and the last ending: flickr30k_1.npz is flickr30k_1); the "number" (the last run
        of digits: COCO_val2014_000000000042.jpg is 42).
    pattern: a regular expression that the features' ids match as a whole, with one group, to which
        `id` is then applied, as "nlvr2_(.*)" for UNITER's names; null takes all of them.
    duplicates: where rows of one id say different things: "refuse" the picture, or take the
        "first" valid one. Rows that say the same are one row in any case.
    """

    format: str
    path: str
    predictions: str | None = None
    labels: str | None = None
    attributes: str | None = None
    feature_size: int | None = 2048
    num_top: int = 1
    join: str = "image_id"
    id: str = "whole"
    pattern: str | None = None
    duplicates: str = "refuse"

    def __post_init__(self) -> None:
        for name, valid in (
            ("format", FORMATS),
            ("join", JOINS),
            ("id", IDS),
            ("duplicates", DUPLICATES),
        ):
            if getattr(self, name) not in valid:
                expected = ", ".join(map(repr, valid))
                raise BoxlessError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        if not self.path:
            raise BoxlessError("path is empty; expected the file or folder of the features.")
        for name, number in (("feature_size", self.feature_size), ("num_top", self.num_top)):
            if number is not None and number < 1:
                raise BoxlessError(f"{name} is {number}; expected 1 or more.")
        if self.predictions is not None and self.format != "vinvl-tsv":
            raise BoxlessError(
                f"predictions is {self.predictions!r} with format {self.format!r}; only "
                "'vinvl-tsv' has boxes and classes in a file of their own. Set it to null."
            )
        if self.labels is None and self.format != "butd-tsv":
            raise BoxlessError(
                f"labels is null with format {self.format!r}, which has classes; expected the file "
                "of their names, as objects_vocab.txt."
            )
        if self.labels is None and (self.attributes is not None or self.num_top > 1):
            raise BoxlessError(
                "labels is null, for rows without classes, but attributes or num_top ask for more; "
                "expected attributes null and num_top 1."
            )
        if self.pattern is not None:
            _check_pattern(self.pattern)


def _check_pattern(pattern: str) -> None:
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise BoxlessError(f"pattern is {pattern!r}, no regular expression ({error}).") from None
    if num_groups != 1:
        raise BoxlessError(
            f"pattern is {pattern!r} with {num_groups} groups; expected one, as in 'nlvr2_(.*)'."
        )
