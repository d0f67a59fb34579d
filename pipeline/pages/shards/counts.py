"""Statistics of shards: objects a picture, scores, commonest labels, failures.

Counted over the samples that it is given, which need not be all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.pages.object_names import Names
from pipeline.pages.shards.shard_browser import Broken, ShardBrowser, Whole
from sharding.format.schema import Failure, Note, Sample, ShardError, check_objects

NUM_SCORE_BINS = 20
_MOST_MANIFESTS = 32


class Counts:
    """Adds up samples; objects below `min_score` are not seen.

    num_pictures: those counted. num_broken: those that could not be read. a_picture: {objects:
    pictures}. scores: objects by score [20] in steps of 0.05. labels: objects by name. num_phrases,
    num_matched: phrases in all, and those like some object. Of image shards the true objects are
    counted, where they are known.
    """

    def __init__(self, names: Names, *, min_score: float) -> None:
        self._names, self._min_score = names, min_score
        self.num_pictures = self.num_broken = self.num_phrases = self.num_matched = 0
        self.has_objects = False
        self.a_picture: Counter[int] = Counter()
        self.scores = np.zeros(NUM_SCORE_BINS, np.int64)
        self.labels: Counter[str] = Counter()
        self.num_captions: Counter[int] = Counter()

    @property
    def num_empty(self) -> int:
        """Pictures without any object."""
        return self.a_picture[0]

    @property
    def num_objects(self) -> int:
        """Objects of all pictures counted."""
        return self.labels.total()

    def add(self, found: Whole | Broken) -> None:
        """Counts one sample."""
        if isinstance(found, Broken):
            self.num_broken += 1
            return
        try:
            if found.sample.objects is None:
                self._add_truth(found.sample)
            else:
                self._add_objects(found.sample, found.sample.objects)
        except ShardError:
            self.num_broken += 1
            return
        captions = found.sample.info["captions"]
        self.num_captions[len(captions) if isinstance(captions, list) else 0] += 1
        self.num_pictures += 1

    def _add_truth(self, sample: Sample) -> None:
        truth = sample.info.get("truth")
        labels = truth.get("labels") if isinstance(truth, dict) else None
        if isinstance(labels, list):
            self.a_picture[len(labels)] += 1
            self.labels.update(label for label in labels if isinstance(label, str))

    def _add_objects(self, sample: Sample, objects: np.ndarray) -> None:
        check_objects(objects)
        self.has_objects = True
        strong = objects[objects["score"] >= self._min_score]
        self.a_picture[len(strong)] += 1
        places = (strong["score"].astype(np.float64) * NUM_SCORE_BINS).astype(np.int64)
        self.scores += np.bincount(places.clip(0, NUM_SCORE_BINS - 1), minlength=NUM_SCORE_BINS)
        self.labels.update(map(self._names.label, strong["label"].tolist()))
        self._add_phrases(sample.info.get("phrases"), len(strong))

    def _add_phrases(self, raw: object, num_strong: int) -> None:
        for phrases in raw if isinstance(raw, list) else ():
            for phrase in phrases if isinstance(phrases, list) else ():
                similarities = phrase.get("similarity") if isinstance(phrase, dict) else None
                if isinstance(similarities, list):
                    self.num_phrases += 1
                    self.num_matched += any(_is_above_zero(v) for v in similarities[:num_strong])


def _is_above_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


class Losses:
    """What did not become samples: failures and notes of the manifests that were read.

    num_failed: of all shards, by their catalog; num_unread: of those whose reasons are not
    known, as their manifests were not opened or cannot be read.
    """

    def __init__(self, browser: ShardBrowser) -> None:
        self.failures: list[Failure] = []
        self.notes: list[Note] = []
        self.num_failed = sum(entry.num_failed for entry in browser.entries)
        worst = sorted(
            range(len(browser.entries)), key=lambda shard: -browser.entries[shard].num_failed
        )
        for shard in sorted(worst[:_MOST_MANIFESTS]):
            try:
                manifest = browser.manifest(shard)
            except ShardError:
                continue
            self.failures += manifest.failures
            self.notes += manifest.notes
        self.num_unread = self.num_failed - len(self.failures)


def commonest(labels: Counter[str], most: int) -> Sequence[tuple[str, int]]:
    """The commonest, by falling number and then by name."""
    return sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
