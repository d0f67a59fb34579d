"""Joins precomputed features to the pictures of image shards (`distill.teacher: features`).

Pictures are asked for in the order of the image shards and their rows read where they lie, so
memory holds one picture's row and the index, whatever the size of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharding.format.schema import Failure, Sample, object_dtype
from sharding.writing.atomic import sha256_of
from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.butd_npz import ButdNpz
from stages.distill.precomputed.formats.butd_tsv import ButdTsv
from stages.distill.precomputed.formats.coco_json import CocoJson
from stages.distill.precomputed.formats.record import FeaturesError, Reader, Record, RowError
from stages.distill.precomputed.formats.uniter_lmdb import UniterLmdb
from stages.distill.precomputed.formats.vinvl_tsv import VinvlTsv
from stages.distill.precomputed.ids import hash_of, rule_of, sample_id
from stages.distill.precomputed.index import NUM_SHOWN
from stages.distill.precomputed.names import Names, read_names, unlabelled
from stages.distill.precomputed.objects import to_objects

VERSION = "features/1"
"""Names the rules of this package in fingerprints; a change that moves any output raises it."""
NO_FEATURES = "no features"
"""The reason of a picture that the files have no row of."""
_PATHS = (
    "path",
    "predictions",
    "labels",
    "attributes",
)  # their content is recorded, not their path
_NUM_BEFORE_A_WORD = 256


@dataclass(frozen=True, kw_only=True)
class Account:
    """Pictures and features that found each other, and those that did not.

    num_features: ids in the files. num_features_without_pictures, features_without_pictures: how
    many of them no picture has, and the first ones. num_repeated: ids with several rows.
    num_without_id, without_id: rows without an id, and the first of them in words.
    """

    num_pictures: int
    num_pictures_without_features: int
    num_features: int
    num_features_without_pictures: int
    features_without_pictures: tuple[str, ...]
    num_repeated: int
    repeated: tuple[str, ...]
    num_without_id: int
    without_id: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.num_pictures_without_features} of {self.num_pictures} pictures have no "
            f"features, {self.num_features_without_pictures} of {self.num_features} features have "
            f"no picture{_named(self.features_without_pictures)}."
        )


class PrecomputedObjects:
    """An ObjectSource that looks up precomputed detections in the files of `config`.

    index_folder: where the passes over large files are kept, by file; None keeps them in memory.
    With `show` the pass is shown, and what was found. Raises FeaturesError, beginning with the
    field of `distill.features` at fault, where files are missing or are not what it says.

    Its fingerprint holds the settings, the names, and of each large file its size, its first and
    last MiB and the places of all rows (`index.file_signature`).
    """

    def __init__(
        self, config: FeaturesConfig, *, index_folder: Path | None = None, show: bool = True
    ) -> None:
        self._config, self._show = config, show
        labels = unlabelled()
        if config.labels is not None:
            labels = read_names(config.labels, field="labels", section="label")
        attributes = None
        if config.attributes is not None:
            attributes = read_names(config.attributes, field="attributes", section="attribute")
        self.label_names = labels.names
        self.attribute_names = attributes.names if attributes else ()
        self.feature_size = config.feature_size or 1
        self.num_top = config.num_top
        if self.num_top > len(self.label_names):
            raise FeaturesError(
                f"num_top is {self.num_top}, but labels names {len(self.label_names)} classes"
            )
        self._dtype = object_dtype(
            feature_size=self.feature_size, num_top=self.num_top, attributes=attributes is not None
        )
        self._reader = open_reader(config, labels, attributes, folder=index_folder, show=show)
        self._rule = rule_of(config)
        if not len(self._reader.index.hashes):
            faults = _named(self._reader.index.faults)
            raise FeaturesError(
                f"path is {config.path!r}, with no row of an id{faults}; expected {config.format}"
            )
        self.fingerprint = self._fingerprint()
        self._num_seen = self._num_found = 0
        if show:
            print(self._about_files(), flush=True)

    def objects(self, samples: Iterable[Sample]) -> Iterator[np.ndarray | Failure]:
        """The objects of each sample, in order; a Failure where the files have no features of it
        ("no features") or no valid ones ("features: " and the reason)."""
        for sample in samples:
            yield self._see(sample)

    def account(self, samples: Iterable[tuple[str, Mapping[str, Any]]]) -> Account:
        """Who has no partner, over the key and json of all samples there are.

        Raises FeaturesError where no picture has one: the rule that joins them is wrong then.
        """
        index = self._reader.index
        asked, num_pictures, num_without, first = [], 0, 0, ("", "")
        for key, info in samples:
            compared = sample_id(key, info, self._config)
            num_pictures += 1
            if compared is None or not index.find(compared):
                num_without += 1
                first = first if num_without > 1 else (key, compared or "")
            else:
                asked.append(hash_of(compared))
        if num_pictures and not asked:
            raise FeaturesError(
                f"join is {self._config.join!r}, by which none of {num_pictures} pictures has "
                f"features. {self._apart(*first)}"
            )
        lonely = np.setdiff1d(index.unique, np.array(asked, np.uint64))
        repeated = index.repeated() if self._reader.is_row_a_picture else lonely[:0]
        return Account(
            num_pictures=num_pictures,
            num_pictures_without_features=num_without,
            num_features=len(index.unique),
            num_features_without_pictures=len(lonely),
            features_without_pictures=self._ids(lonely),
            num_repeated=len(repeated),
            repeated=self._ids(repeated),
            num_without_id=index.num_faults,
            without_id=index.faults,
        )

    def _see(self, sample: Sample) -> np.ndarray | Failure:
        compared = sample_id(sample.key, sample.info, self._config)
        if compared is None:
            reason = f"its json has no {self._config.join} to find them by"
            return Failure(key=sample.key, reason=f"{NO_FEATURES}: {reason}")
        places = self._reader.index.find(compared)
        self._count(sample, compared, found=bool(places))
        if not places:
            return Failure(key=sample.key, reason=NO_FEATURES)
        try:
            return to_objects(
                self._record(compared, places),
                width=sample.info["width"],
                height=sample.info["height"],
                dtype=self._dtype,
                num_labels=len(self.label_names),
                num_attributes=len(self.attribute_names),
            )
        except RowError as error:
            return Failure(key=sample.key, reason=f"features: {error}")

    def _record(self, compared: str, places: list) -> Record:
        """The one record of an id; RowError where the valid ones among its rows do not agree."""
        groups = [[place] for place in places] if self._reader.is_row_a_picture else [places]
        # Reasons, not errors: an error raised again from a list in its own frame is a cycle, which
        # would hold the row's arrays and the reader's open file until the collector comes by.
        records, reasons = [], []
        for group in groups:
            try:
                record = self._reader.read(group)
            except RowError as error:
                reasons.append(str(error))
                continue
            if self._rule(record.id) == compared:  # else another id of the same hash
                records.append(record)
        if not records:
            raise RowError(reasons[0] if reasons else "the row is of another id")
        if self._config.duplicates == "refuse":
            if any(not record.says_as(records[0]) for record in records):
                raise RowError(
                    f"{len(records)} rows of {records[0].id!r} say different things; keep one, or "
                    "set distill.features.duplicates to first"
                )
        return records[0]

    def _count(self, sample: Sample, compared: str, *, found: bool) -> None:
        """Say so, once, where the first pictures find nothing: the rule may be wrong."""
        self._num_seen += 1
        self._num_found += found
        if self._show and self._num_seen == _NUM_BEFORE_A_WORD and not self._num_found:
            print(
                f"features: none for the first {self._num_seen} pictures. "
                f"{self._apart(sample.key, compared)}",
                flush=True,
            )

    def _apart(self, key: str, compared: str) -> str:
        """Ids of a sample and of the features, for the error message."""
        ids = [repr(self._rule(each)) for each in self._ids(self._reader.index.unique)]
        return (
            f"Sample {key} asks for {compared!r}, the files have {', '.join(ids)}, ...; if these "
            "are to be the same pictures, set distill.features.join, id or pattern."
        )

    def _ids(self, hashes: np.ndarray) -> tuple[str, ...]:
        """The first few of ids given by their hashes, as the files spell them."""
        ids = []
        for hashed in hashes[:NUM_SHOWN].tolist():
            try:
                ids.append(self._reader.id_at(self._reader.index.places(hashed)[0]))
            except RowError as error:
                ids.append(f"({error})")
        return tuple(ids)

    def _about_files(self) -> str:
        index = self._reader.index
        words = f"features: {len(index.unique)} ids in {len(index.hashes)} rows"
        if self._reader.is_row_a_picture and len(repeated := index.repeated()):
            words += f"; {len(repeated)} ids have several rows{_named(self._ids(repeated))}"
        if index.num_faults:
            words += f"; {index.num_faults} rows have no id{_named(index.faults)}"
        return words + "."

    def _fingerprint(self) -> str:
        settings = {k: v for k, v in asdict(self._config).items() if k not in _PATHS}
        return sha256_of(
            {
                "version": VERSION,
                "settings": settings,
                "labels": self.label_names,
                "attributes": self.attribute_names,
                "files": self._reader.fingerprint,
            }
        )


def open_reader(
    config: FeaturesConfig,
    labels: Names,
    attributes: Names | None,
    *,
    folder: Path | None,
    show: bool,
) -> Reader:
    """The reader of the config's format."""
    if config.format == "butd-npz":
        return ButdNpz(config)
    if config.format == "butd-tsv":
        return ButdTsv(config, folder=folder, show=show)
    if config.format == "vinvl-tsv":
        return VinvlTsv(config, labels, attributes, folder=folder, show=show)
    if config.format == "uniter-lmdb":
        return UniterLmdb(config)
    return CocoJson(config, labels, folder=folder, show=show)


def _named(ids: tuple[str, ...]) -> str:
    return f" ({', '.join(ids)})" if ids else ""
