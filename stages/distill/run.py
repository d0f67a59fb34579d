"""`boxless distill`: runs a teacher over every picture once and writes object shards.

Every image shard becomes the object shard of the same name, whole or not at all. The workers share
the shards by claims (`sharding.coordination.claims`); killed at any moment and started again, the
stage continues with what is not finished and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sharding.coordination.claims import Worker
from sharding.format.catalog import Catalog, ShardEntry, load_manifest, read_catalog, write_catalog
from sharding.format.completeness import check_completeness
from sharding.format.manifest import is_done, manifest_path, read_manifest
from sharding.format.manifest_summary import read_manifest_summary
from sharding.format.schema import EncodedSample, Failure, Sample
from sharding.reading.sample_reader import OpenTar, read_info
from sharding.writing.atomic import remove_temporary, write_json
from sharding.writing.previous_shard import PreviousShard
from sharding.writing.shard_writer import write_shard
from stages.detector.device import pick_device
from stages.distill.config import DistillConfig
from stages.distill.fingerprint import settings_fingerprint, shard_fingerprints, with_input
from stages.distill.inference.failures import DistillError
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.inference.stage_timer import DEVICE, Clock
from stages.distill.label import Labeller
from stages.distill.object_source import ObjectSource
from stages.distill.precomputed.join import PrecomputedObjects
from stages.distill.reuse import label_or_reuse
from stages.distill.shard_samples import ShardSamples
from stages.distill.text.caption_prompts import PromptSimilarity
from stages.distill.text.parser_pool import ParserPool
from stages.distill.text.phrases import Chunker, ParserChunker, make_chunker
from stages.distill.text.similarity import Similarity, make_similarity
from stages.library_versions import accept_other_versions
from stages.progress import Progress

NO_PHRASES = (
    "distill: warning: no caption has a phrase, so pretrain.pra (phrase-region alignment) will have "
    "no targets and learn nothing; set distill.phrases to parser with distill.parser of the "
    "captions' language, or pretrain.pra.weight to 0"
)
ABOUT = "about.json"
"""What `finish` has to know of teacher and settings; each worker would write the same bytes."""
_NUM_REASONS_SHOWN = 8
NUM_PARSERS_ON_GPUS = 2
"""Processes that parse beside a teacher on a GPU, where the recipe does not say how many."""
_LABEL = "label"
"""All that the thread that writes does for a result before, or waits for."""
_PARTS = ("decode wait", DEVICE, "selection", "phrases", "write")


def distill(
    config: DistillConfig,
    *,
    images: Path,
    object_source: ObjectSource,
    out: Path,
    show: bool = True,
) -> Catalog:
    """Label the image shards of the catalog in folder `images`, both splits; returns the catalog.

    object_source: whose objects; `make_object_source` has the recipe's.

    Any number of processes may do so at once, each returns when all is done. Shards in `out` that
    are done are skipped. A picture that cannot be decoded or detected is a Failure in the manifest.
    With `show` progress, counts and reasons are printed. Raises DistillError, also where every
    picture failed, and ShardError, also where others make shards of other settings in `out`.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    log = functools.partial(print, flush=True)
    chunker, similarity = _phrases_and_similarity(
        config, object_source, log=log if show else lambda text: None
    )
    fingerprint = settings_fingerprint(config, object_source, chunker, similarity)
    shards = {shard.tar: shard for shard in _image_catalog(images).shards}
    with (
        _with_parsers(config, chunker) as chunker,
        Worker(
            out,
            {tar: shard.num_ok for tar, shard in shards.items()},
            shard_fingerprints(config, fingerprint, list(shards.values()), out, log),
            log=log,
            lease_seconds=config.lease_seconds,
            fatal=(DistillError,),
        ) as worker,
    ):
        clock = object_source.clock if isinstance(object_source, InferencePipeline) else Clock()
        labeller = Labeller(config, object_source, chunker, similarity, clock=clock)
        num_pictures = _label_shards(
            worker, shards, labeller, fingerprint, images=images, out=out, clock=clock, show=show
        )
        if show and num_pictures and isinstance(object_source, InferencePipeline):
            log(f"distill: {object_source.about_batches()}")
        with worker.finalize() as is_last:
            if is_last:
                about = _about(object_source, chunker, similarity)
                if isinstance(object_source, PrecomputedObjects):
                    account = object_source.account(_infos(images))
                    log(f"distill: {account}")
                    about["features"] = asdict(account)
                _write_about(out, about, fingerprint, accept_versions=config.accept_versions)
                finish(images, out)
    catalog = read_catalog(out)
    if show:
        _say_counts(catalog, out)
    _check_something_was_labelled(catalog, out)
    return catalog


def _phrases_and_similarity(
    config: DistillConfig, object_source: ObjectSource, *, log: Callable[[str], None]
) -> tuple[Chunker, Similarity]:
    """What finds phrases, and what compares them with objects: the recipe's, or, where the teacher
    was prompted with the captions' phrases, that teacher's."""
    if isinstance(object_source, InferencePipeline) and object_source.prompts is not None:
        return object_source.prompts, PromptSimilarity()
    names = object_source.label_names, object_source.attribute_names
    return make_chunker(config, *names, log=log), make_similarity(config, *names)


@contextlib.contextmanager
def _with_parsers(config: DistillConfig, chunker: Chunker) -> Iterator[Chunker | ParserPool]:
    """The chunker, where it is a parser with the processes that the recipe asks for."""
    num = config.num_parsers
    if num is None:
        num = NUM_PARSERS_ON_GPUS if pick_device().type == "cuda" else 0
    if num == 0 or not isinstance(chunker, ParserChunker):
        yield chunker
        return
    with ParserPool(chunker, config.parser, num) as pool:
        yield pool


def _label_shards(
    worker: Worker,
    shards: Mapping[str, ShardEntry],
    labeller: Labeller,
    fingerprint: dict[str, str],
    *,
    images: Path,
    out: Path,
    clock: Clock,
    show: bool,
) -> int:
    """Write object shards until all are done, by this worker or by others; pictures labelled
    here."""
    total = sum(shard.num_ok for shard in shards.values())
    (num_before, start), tally = worker.count_done(), Counts()
    with Progress("distill", total=total, unit="pictures", start=start, show=show) as progress:
        clock.start()
        for claim in worker.claims(progress.advance):
            with claim:
                load_manifest(images / claim.tar, shards[claim.tar])  # ShardError where it changed
                labelled = label_or_reuse(
                    ShardSamples.of(images / claim.tar),
                    labeller,
                    PreviousShard(out / claim.tar, fingerprint),
                )
                # Closed, whatever ends the writing: threads are running for it.
                with contextlib.closing(labelled), clock.during("write", without=_LABEL):
                    write_shard(
                        out / claim.tar,
                        claim.track(tally.count(labelled, progress, clock)),
                        fingerprint=with_input(fingerprint, shards[claim.tar]),
                        check_owner=claim.check_owner,
                    )
        progress.log(f"distill: {num_before} of {len(shards)} shards were done before. {tally}")
        if tally.num_captions and not tally.num_phrases:
            progress.log(NO_PHRASES)
        if tally.num_pictures:
            progress.log(f"distill: {_times(tally.num_pictures, clock)}")
    return tally.num_pictures


def finish(images: Path, out: Path) -> Catalog:
    """Write the catalog of `out` when every shard of `images` is done.

    The catalog has, beside the metadata of the images' catalog: label_names, attribute_names,
    feature_size, num_top (the length of a soft label), teacher (its fingerprint), chunker,
    similarity, and with a PrecomputedObjects features, its Account.
    Raises DistillError where shards are missing or of other settings, and ShardError where one
    lost a picture.
    """
    pictures = _image_catalog(images)
    try:
        run = json.loads((out / ABOUT).read_bytes())
    except FileNotFoundError as error:
        raise DistillError(f"{out} has no {ABOUT}; run boxless distill first.") from error
    missing = []
    wanted = {shard.tar: with_input(run["fingerprint"], shard) for shard in pictures.shards}
    if run.get("accept_versions"):
        wanted = accept_other_versions(out, wanted, log=lambda text: None)
    for shard in pictures.shards:
        if is_done(out / shard.tar, wanted[shard.tar]):
            inputs = load_manifest(images / shard.tar, shard).samples
            keys = (sample.key for sample in inputs)
            check_completeness(out / shard.tar, keys, read_manifest(out / shard.tar))
        else:
            missing.append(shard.tar)
    if missing:
        raise DistillError(
            f"{len(missing)} of {len(pictures.shards)} object shards in {out} are not done, the "
            f"first is {missing[0]}. Run boxless distill again: it writes only those."
        )
    tars = [shard.tar for shard in pictures.shards]
    names = {name for tar in tars for name in (tar, manifest_path(Path(tar)).name)}
    remove_temporary(out, {ABOUT, *names})
    about = {**pictures.metadata, **run["about"]}
    splits = {shard.tar: shard.split for shard in pictures.shards}
    return write_catalog(out, kind="objects", splits=splits, metadata=about)


@dataclass
class Counts:
    """What this process has made so far."""

    num_pictures: int = 0
    num_kept: int = 0
    num_failed: int = 0
    num_objects: int = 0
    num_captions: int = 0
    num_phrases: int = 0

    def count(
        self, results: Iterator[Sample | EncodedSample | Failure], progress: Progress, clock: Clock
    ) -> Iterator[Sample | EncodedSample | Failure]:
        """Hand the results on, counted and shown."""
        while True:
            with clock.during(_LABEL):
                result = next(results, None)
            if result is None:
                return
            if isinstance(result, Sample):
                assert result.objects is not None
                self.num_pictures += 1
                self.num_objects += len(result.objects)
                self.num_captions += len(result.info["phrases"])
                self.num_phrases += sum(map(len, result.info["phrases"]))
            elif isinstance(result, EncodedSample):
                self.num_kept += 1
            else:
                self.num_failed += 1
            busy = clock.share(DEVICE)
            progress.advance(1, **({"device busy": busy} if busy else {}))
            yield result

    def __str__(self) -> str:
        objects = self.num_objects / max(self.num_pictures, 1)
        phrases = self.num_phrases / max(self.num_captions, 1)
        kept = f" {self.num_kept} unchanged ones were kept." if self.num_kept else ""
        return (
            f"Labelled {self.num_pictures} pictures: {objects:.1f} objects a picture, "
            f"{phrases:.1f} phrases a caption; {self.num_failed} failed.{kept}"
        )


def _image_catalog(images: Path) -> Catalog:
    catalog = read_catalog(images)
    if catalog.kind != "images":
        raise DistillError(f"{images} holds {catalog.kind}; expected the folder of image shards.")
    return catalog


def _infos(images: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and json of every sample of the image shards."""
    for shard in _image_catalog(images).shards:
        source = OpenTar(images / shard.tar)
        for entry in load_manifest(images / shard.tar, shard).samples:
            yield entry.key, read_info(source, entry)


def _times(num_pictures: int, clock: Clock) -> str:
    """Where this worker's time went; its parts overlap."""
    parts = "  ".join(f"{part} {clock.seconds(part):.4g} s" for part in _PARTS)
    return (
        f"{num_pictures / clock.passed():.4g} pictures/s in {clock.passed():.4g} s, device busy "
        f"{clock.share(DEVICE):.0%}. Side by side: {parts}"
    )


def _about(object_source: ObjectSource, chunker: Chunker, similarity: Similarity) -> dict[str, Any]:
    return {
        "label_names": list(object_source.label_names),
        "attribute_names": list(object_source.attribute_names),
        "feature_size": object_source.feature_size,
        "num_top": object_source.num_top,
        "teacher": object_source.fingerprint,
        "chunker": chunker.name,
        "similarity": similarity.name,
    }


def _write_about(
    out: Path, about: dict[str, Any], fingerprint: dict[str, str], *, accept_versions: bool
) -> None:
    """Write the file that `finish` reads."""
    accepting = {"accept_versions": True} if accept_versions else {}
    write_json(out / ABOUT, {"about": about, "fingerprint": fingerprint, **accepting})


def _check_something_was_labelled(catalog: Catalog, out: Path) -> None:
    """DistillError where there were pictures and every one failed: nothing can be trained on."""
    num_failed = sum(shard.num_failed for shard in catalog.shards)
    if num_failed == 0 or any(shard.num_ok for shard in catalog.shards):
        return
    ((reason, count),) = _reasons(catalog, out).most_common(1)
    raise DistillError(
        f"{out}: got no labelled picture, as all {num_failed} failed ({count} x {reason}); expected "
        "objects for some; remove the cause, then run `boxless retry RUN`"
    )


def _reasons(catalog: Catalog, out: Path) -> Counter[str]:
    """Why pictures failed, and how many."""
    tars = [out / shard.tar for shard in catalog.shards if shard.num_failed]
    return Counter(
        failure.reason for tar in tars for failure in read_manifest_summary(tar).failures
    )


def _say_counts(catalog: Catalog, out: Path) -> None:
    num_ok = sum(shard.num_ok for shard in catalog.shards)
    num_failed = sum(shard.num_failed for shard in catalog.shards)
    print(
        f"distill: {len(catalog.shards)} shards, {num_ok + num_failed} pictures in, {num_ok} "
        f"labelled, {num_failed} failed.",
        flush=True,
    )
    for reason, count in _reasons(catalog, out).most_common(_NUM_REASONS_SHOWN):
        print(f"  {count} x {reason}", flush=True)
