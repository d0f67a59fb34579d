"""`boxless distill`: a teacher looks at every picture once and writes what it sees into shards.

Reached from the pipeline: on each rank `distill`, and after all ranks ended `finish`, which writes
the catalog. Every image shard becomes the object shard of the same name, whole or not at all;
killed at any moment and started again, the stage goes on behind the last finished shard and ends
with the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from sharding.atomic import remove_stale, sha256_of, write_json
from sharding.catalog import NAME, Catalog, ShardEntry, load_manifest, read_catalog, write_catalog
from sharding.manifest import is_done, read_manifest
from sharding.read import iterate
from sharding.schema import Failure, Sample
from sharding.write import write_shard
from stages.distill.distill_config import DistillConfig
from stages.distill.label import Detector, DistillError, Labeller
from stages.distill.phrases import Chunker, make_chunker
from stages.progress import Progress

VERSION = "distill/1"
"""Names the rules of this stage in fingerprints; a change that moves any output raises it."""
ABOUT = "about.json"
"""What `finish` has to know of teacher and settings; each rank writes the same bytes."""
# Their effect is in the chunker's fingerprint, or (threads) they belong to the machine.
_OUTSIDE_THE_FINGERPRINT = ("phrases", "parser", "num_threads")
_NUM_REASONS_SHOWN = 8


def distill(
    config: DistillConfig,
    *,
    images: Path,
    teacher: Detector,
    out: Path,
    rank: int = 0,
    world_size: int = 1,
) -> Catalog | None:
    """Label the image shards of this rank: those at `rank`, `rank` + `world_size`, ... of the
    catalog in folder `images`, both splits. Shards in `out` that are done are skipped.

    A picture that cannot be decoded or detected is a Failure in the manifest. A single rank ends
    with `finish` and gives the catalog; several give None, and the caller calls `finish` once all
    have ended. Raises DistillError and ShardError.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    first = rank == 0
    chunker = make_chunker(
        config,
        teacher.label_names,
        teacher.attribute_names,
        say=print if first else lambda text: None,
    )
    fingerprint = _fingerprint(config, teacher, chunker)
    mine = _image_catalog(images).shards[rank::world_size]
    todo = [
        shard for shard in mine
        if not is_done(out / shard.tar, _with_input(fingerprint, shard))
    ]
    _begin(out, _about(teacher, chunker), fingerprint, fresh=bool(todo))
    labeller, tally = Labeller(config, teacher, chunker), Tally()
    total = sum(shard.num_ok for shard in mine)
    start = total - sum(shard.num_ok for shard in todo)
    with Progress("distill", total=total, unit="pictures", start=start, show=first) as progress:
        for shard in todo:
            load_manifest(images / shard.tar, shard)  # ShardError where it changed since
            results = labeller.label(iterate(images / shard.tar))
            write_shard(
                out / shard.tar,
                tally.count(results, progress),
                fingerprint=_with_input(fingerprint, shard),
            )
        num_before = len(mine) - len(todo)
        progress.say(f"distill: {num_before} of {len(mine)} shards were done before. {tally}")
    return finish(images, out) if world_size == 1 else None


def finish(images: Path, out: Path) -> Catalog:
    """Write the catalog of `out` when every shard of `images` is done, and say the counts.

    The catalog tells, beside what the images' catalog tells: label_names, attribute_names,
    feature_size, num_top (the length of a soft label), teacher (its fingerprint) and chunker.
    Raises DistillError where shards are missing or of other settings.
    """
    pictures = _image_catalog(images)
    try:
        run = json.loads((out / ABOUT).read_bytes())
    except FileNotFoundError as error:
        raise DistillError(f"{out} has no {ABOUT}; run boxless distill first.") from error
    missing = [
        shard.tar for shard in pictures.shards
        if not is_done(out / shard.tar, _with_input(run["fingerprint"], shard))
    ]
    if missing:
        raise DistillError(
            f"{len(missing)} of {len(pictures.shards)} object shards in {out} are not done, the "
            f"first is {missing[0]}. Run boxless distill again: it writes only those."
        )
    tars = [out / shard.tar for shard in pictures.shards]
    about = {**pictures.about, **run["about"]}
    splits = {shard.tar: shard.split for shard in pictures.shards}
    catalog = write_catalog(out, kind="objects", splits=splits, about=about)
    _say_counts(catalog, tars)
    return catalog


@dataclass
class Tally:
    """What this process has made so far."""

    num_pictures: int = 0
    num_failed: int = 0
    num_objects: int = 0
    num_captions: int = 0
    num_phrases: int = 0

    def count(
        self, results: Iterable[Sample | Failure], progress: Progress
    ) -> Iterator[Sample | Failure]:
        """Hand the results on, counted and shown."""
        for result in results:
            if isinstance(result, Sample):
                assert result.objects is not None
                self.num_pictures += 1
                self.num_objects += len(result.objects)
                self.num_captions += len(result.info["phrases"])
                self.num_phrases += sum(map(len, result.info["phrases"]))
            else:
                self.num_failed += 1
            progress.advance()
            yield result

    def __str__(self) -> str:
        objects = self.num_objects / max(self.num_pictures, 1)
        phrases = self.num_phrases / max(self.num_captions, 1)
        return (
            f"Labelled {self.num_pictures} pictures: {objects:.1f} objects a picture, "
            f"{phrases:.1f} phrases a caption; {self.num_failed} failed."
        )


def _image_catalog(images: Path) -> Catalog:
    catalog = read_catalog(images)
    if catalog.kind != "images":
        raise DistillError(f"{images} holds {catalog.kind}; expected the folder of image shards.")
    return catalog


def _fingerprint(config: DistillConfig, teacher: Detector, chunker: Chunker) -> dict[str, str]:
    """What shapes every shard, the input apart."""
    shaping = {k: v for k, v in asdict(config).items() if k not in _OUTSIDE_THE_FINGERPRINT}
    return {
        "distill": sha256_of(shaping),
        "teacher": teacher.fingerprint,
        "phrases": chunker.fingerprint,
        "versions": f"{VERSION} torch {torch.__version__} numpy {np.__version__} "
        f"Pillow {PIL.__version__}",
    }


def _with_input(fingerprint: dict[str, str], shard: ShardEntry) -> dict[str, str]:
    return {**fingerprint, "input": shard.manifest_sha256}


def _about(teacher: Detector, chunker: Chunker) -> dict[str, Any]:
    return {
        "label_names": list(teacher.label_names),
        "attribute_names": list(teacher.attribute_names),
        "feature_size": teacher.feature_size,
        "num_top": teacher.num_top,
        "teacher": teacher.fingerprint,
        "chunker": chunker.name,
    }


def _begin(
    out: Path, about: dict[str, Any], fingerprint: dict[str, str], *, fresh: bool
) -> None:
    """Leave word for `finish`; where shards will be written an older catalog goes first, as it
    would speak of shards that are no more."""
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        (out / NAME).unlink(missing_ok=True)
    remove_stale(out, {ABOUT})
    write_json(out / ABOUT, {"about": about, "fingerprint": fingerprint})


def _say_counts(catalog: Catalog, tars: list[Path]) -> None:
    num_ok = sum(shard.num_ok for shard in catalog.shards)
    num_failed = sum(shard.num_failed for shard in catalog.shards)
    print(
        f"distill: {len(tars)} shards, {num_ok + num_failed} pictures in, {num_ok} labelled, "
        f"{num_failed} failed.",
        flush=True,
    )
    if num_failed:
        reasons = Counter(f.reason for tar in tars for f in read_manifest(tar).failures)
        for reason, count in reasons.most_common(_NUM_REASONS_SHOWN):
            print(f"  {count} x {reason}", flush=True)
