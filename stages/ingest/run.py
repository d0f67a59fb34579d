"""From a corpus to image shards: every input is a sample or a recorded failure.

Input i of a split goes into its shard i // samples_per_shard, so names and contents of shards are
fixed before any picture is read, and are the same for every worker. They share the shards by claims
(`sharding.coordination.claims`): a shard whose manifest has the right fingerprint is left alone,
and a run that was stopped continues with the next.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sharding.coordination.claims import Worker
from sharding.format.catalog import NAME, Catalog, read_catalog, write_catalog
from sharding.format.completeness import check_completeness
from sharding.format.manifest import Manifest, manifest_path, read_manifest
from sharding.format.manifest_summary import read_manifest_summary
from sharding.format.schema import EncodedSample, Failure, Note, Sample, ShardError
from sharding.writing.atomic import remove_temporary
from sharding.writing.previous_shard import PreviousShard
from sharding.writing.shard_writer import write_shard
from stages.ingest.config import IngestConfig
from stages.ingest.evaluation_pictures import (
    GuardedSource,
    check_no_evaluation_pictures,
    read_exclusions,
)
from stages.ingest.sample import make_sample
from stages.ingest.sources.coco import CocoSource, coco_files
from stages.ingest.sources.flickr30k_entities import Flickr30kEntitiesSource
from stages.ingest.sources.nlvr import NlvrSource
from stages.ingest.sources.source import (
    DroppedRecords,
    Picture,
    Source,
    SourceError,
    inputs_fingerprint,
    shown,
)
from stages.ingest.sources.toy import ToySource
from stages.ingest.sources.visual_genome import VisualGenomeSource
from stages.ingest.sources.webdataset import WebdatasetSource
from stages.ingest.splits import SplitRule
from stages.ingest.summary import print_summary
from stages.library_versions import VERSIONS, accept_other_versions, library_versions
from stages.progress import Progress

# The number rises when the same inputs would give other samples; also when the toy is drawn again.
STAGE = "ingest/2"
PATHS = ("root", "images", "captions", "instances", "phrases", "annotations", "exclude")
_OUTSIDE_THE_FINGERPRINT = (*PATHS, "lease_seconds", "accept_versions")
MAX_THREADS = 16
AHEAD_PER_THREAD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A tar to be: its name, its split and what goes into it."""

    tar: str
    split: str
    inputs: Sequence[Picture | Failure]


def ingest(
    config: IngestConfig,
    *,
    seed: int,
    out: Path,
    show: bool = True,
) -> Catalog:
    """Write the corpus as image shards into the folder `out`, catalog last; returns the catalog.

    Any number of processes may do so at once, each returns when all is done. Done shards are left
    as they are; tars of an earlier ingest that are no part of this one are removed. With `show`
    progress, counts and reasons are printed. Raises SourceError (a ValueError) where the corpus is
    not what `config` says, or holds nothing to train on, and ShardError where others make shards
    of other settings in `out`.
    """
    source = open_source(config, seed=seed)
    if show:
        for warning in source.warnings:
            print(f"ingest: warning: {warning}", flush=True)
    plan = plan_shards(source.pictures(), samples_per_shard=config.samples_per_shard)
    _check_something_to_train_on(plan, config, source.dropped)
    fingerprints = {shard.tar: fingerprint_of(config, shard, seed=seed) for shard in plan}
    log = functools.partial(print, flush=True)
    with Worker(
        out,
        {shard.tar: len(shard.inputs) for shard in plan},
        accept_other_versions(out, fingerprints, log=log)
        if config.accept_versions
        else fingerprints,
        log=log,
        lease_seconds=config.lease_seconds,
    ) as worker:
        _write_shards(worker, plan, config, fingerprints=fingerprints, out=out, show=show)
        if show:
            heads = [(shard.split, read_manifest_summary(out / shard.tar)) for shard in plan]
            print_summary(heads, dropped=source.dropped)
        with worker.finalize() as is_last:
            if is_last:
                finish(plan, config, source, out=out)
    return read_catalog(out)


def finish(
    plan: Sequence[PlannedShard], config: IngestConfig, source: Source, *, out: Path
) -> Catalog:
    """Write the catalog of `out`, once every shard of the plan is done.

    Raises ShardError where one is not, or lost an input, and SourceError where there is nothing to
    train on.
    """
    trained_on: list[Failure] = []
    num_ok = num_with_boxes = num_boxes_lost = 0
    for shard in plan:
        manifest = read_manifest(out / shard.tar)
        with_boxes, lost = _count_lost_truths(shard, manifest)
        num_with_boxes, num_boxes_lost = num_with_boxes + with_boxes, num_boxes_lost + lost
        check_completeness(out / shard.tar, (i.key for i in shard.inputs), manifest)
        if shard.split == "train":
            num_ok += manifest.num_ok
            trained_on += manifest.failures[:1]
    if not num_ok:
        raise SourceError(
            f"no input of the train split gave a sample ({_first_reasons(trained_on)}); "
            f"each one's reason is in {out}/train-*.tar.json"
        )
    if num_with_boxes and num_boxes_lost == num_with_boxes:
        raise SourceError(
            f"the boxes of all {num_with_boxes} pictures that have some were made for pictures of "
            f"another shape (the notes in {out}/*.tar.json give both sizes); expected the boxes of "
            "these pictures, or none"
        )
    tars = [shard.tar for shard in plan]
    _remove_orphans(out, set(tars))
    remove_temporary(out, {name for tar in tars for name in (tar, manifest_path(Path(tar)).name)})
    return write_catalog(
        out,
        kind="images",
        splits={shard.tar: shard.split for shard in plan},
        metadata={
            "label_names": list(source.label_names),
            "attribute_names": list(source.attribute_names),
            "source": config.source,
            **_dropped_metadata(source),
        },
    )


def _dropped_metadata(source: Source) -> dict[str, object]:
    """What the catalog says of records that belong to no picture: counts, and some by name."""
    if not source.dropped:
        return {}
    return {
        "dropped": dict(sorted(source.dropped.items())),
        "dropped_examples": dict(sorted(source.dropped.examples.items())),
    }


def open_source(config: IngestConfig, *, seed: int) -> Source:
    """The source that the recipe names, without the pictures of the train split that others
    evaluate on; SourceError where its paths or files are wrong, or it trains on such pictures."""
    source = _open_source(config, seed=seed)
    if config.source in ("toy", "nlvr"):
        return source
    exclusions = read_exclusions(config.exclude)
    if not config.allow_evaluation_pictures:
        check_no_evaluation_pictures(source, exclusions)
    return GuardedSource(source=source, exclusions=exclusions) if exclusions else source


def _open_source(config: IngestConfig, *, seed: int) -> Source:
    rule = SplitRule(
        seed=seed, heldout_fraction=config.heldout_fraction, chosen=config.split_of_word
    )
    if config.source == "toy":
        return ToySource(num_train=config.num_train, num_heldout=config.num_heldout, seed=seed)
    assert config.root is not None  # IngestConfig has seen to it
    if config.source == "coco":
        assert config.captions is not None
        files = coco_files(
            root=config.root,
            images=config.images,
            captions=config.captions,
            instances=config.instances,
            phrases=config.phrases,
            splits=config.words_of_splits,
        )
        return CocoSource(files, split_rule=rule)
    if config.source == "nlvr":
        return NlvrSource(
            root=config.root,
            num_orders=config.nlvr_num_orders,
            seed=seed,
            heldout_fraction=config.heldout_fraction,
        )
    if config.source == "flickr30k-entities":
        assert config.annotations is not None
        return Flickr30kEntitiesSource(
            root=config.root, annotations=config.annotations, split_rule=rule
        )
    if config.source == "visual-genome":
        assert config.annotations is not None
        return VisualGenomeSource(
            root=config.root,
            annotations=config.annotations,
            split_rule=rule,
            num_labels=config.vg_num_labels,
            num_attributes=config.vg_num_attributes,
        )
    return WebdatasetSource(
        root=config.root,
        seed=seed,
        heldout_fraction=config.heldout_fraction,
        prefix_keys=config.prefix_keys_by_tar,
    )


def plan_shards(
    inputs: Sequence[Picture | Failure], *, samples_per_shard: int
) -> list[PlannedShard]:
    """Deal the inputs to shards, in order; heldout shards first, as tars are named.

    Of pictures with one key the first is kept, one that is held out before one that is trained on;
    the others become failures. An input that failed in
    the source has no split and is counted with train.
    """
    of_split: dict[str, list[Picture | Failure]] = {"heldout": [], "test": [], "train": []}
    first_of_key: dict[str, Picture] = {}
    for i in sorted(inputs, key=_is_trained_on):
        if isinstance(i, Failure):
            of_split["train"].append(i)
        elif (first := first_of_key.setdefault(i.key, i)) is i:
            of_split[i.split].append(i)
        else:
            reason = f"duplicate key: {i.origin or i.key} after {first.origin or first.key}"
            of_split[i.split].append(Failure(key=i.key, reason=shown(reason)))
    return [
        PlannedShard(
            tar=f"{split}-{start // samples_per_shard:06d}.tar",
            split=split,
            inputs=members[start : start + samples_per_shard],
        )
        for split, members in of_split.items()
        for start in range(0, len(members), samples_per_shard)
    ]


def _is_trained_on(i: Picture | Failure) -> bool:
    return isinstance(i, Failure) or i.split == "train"


def fingerprint_of(config: IngestConfig, shard: PlannedShard, *, seed: int) -> dict[str, str]:
    """Everything that shapes one shard, by name: recipe part, its inputs and versions.

    Not the paths, as what lies there is in the fingerprint of the inputs. Of the corpus only the
    shard's own inputs, so that a picture that changed or came back leaves the other shards as they
    are. Pillow draws the toy pictures and decides which other ones are whole.
    """
    recipe = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in _OUTSIDE_THE_FINGERPRINT
    }
    return {
        "stage": STAGE,
        "seed": str(seed),
        "corpus": inputs_fingerprint(shard.inputs),
        VERSIONS: library_versions("Pillow"),
        **{f"ingest.{name}": str(value) for name, value in recipe.items()},
    }


def _write_shards(
    worker: Worker,
    plan: Sequence[PlannedShard],
    config: IngestConfig,
    *,
    fingerprints: Mapping[str, dict[str, str]],
    out: Path,
    show: bool,
) -> None:
    """Write shards until all of the plan are done, by this worker or by others."""
    by_tar = {shard.tar: shard for shard in plan}
    total = sum(len(shard.inputs) for shard in plan)
    _, start = worker.count_done()
    with Progress("ingest", total=total, unit="pictures", start=start, show=show) as progress:
        for claim in worker.claims(progress.advance):
            with claim:
                earlier = PreviousShard(out / claim.tar, fingerprints[claim.tar])
                results = _results(by_tar[claim.tar].inputs, config, earlier, progress)
                write_shard(
                    out / claim.tar,
                    claim.track(results),
                    fingerprint=fingerprints[claim.tar],
                    check_owner=claim.check_owner,
                )


def _results(
    inputs: Sequence[Picture | Failure],
    config: IngestConfig,
    earlier: PreviousShard,
    progress: Progress,
) -> Iterator[Sample | EncodedSample | Failure | Note]:
    """What the inputs became, in their order. Pillow decodes outside of Python's lock, so threads
    use all cores; a bounded number of pictures is in memory."""
    num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    ahead = num_threads * AHEAD_PER_THREAD
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(inputs), ahead):
            make = functools.partial(_result, config=config, earlier=earlier)
            for results in pool.map(make, inputs[start : start + ahead]):
                yield from results
                progress.advance()


def _result(
    picture: Picture | Failure, config: IngestConfig, earlier: PreviousShard
) -> Sequence[Sample | EncodedSample | Failure | Note]:
    """The sample that the shard has of it already, with its notes; else what is made of it now."""
    if isinstance(picture, Picture) and (kept := earlier.sample(picture.key)) is not None:
        return [kept, *earlier.notes(picture.key)]
    return make_sample(picture, config)


def _remove_orphans(out: Path, planned: set[str]) -> None:
    """Remove what an earlier ingest wrote and this one does not; the catalog, which may name it,
    goes first, and each manifest before its tar, so that no tar without one is taken for done."""
    for tar in _orphans(out, planned):
        (out / NAME).unlink(missing_ok=True)
        manifest_path(tar).unlink(missing_ok=True)
        tar.unlink(missing_ok=True)


def _orphans(out: Path, planned: set[str]) -> list[Path]:
    """Tars in `out` that an earlier ingest wrote, by their manifests, and this one does not."""
    orphans = []
    for tar in sorted(out.glob("*.tar")):
        if tar.name in planned:
            continue
        try:
            stage = read_manifest(tar).fingerprint.get("stage", "")
        except ShardError:
            continue  # not ours to remove
        if stage.startswith("ingest/"):
            orphans.append(tar)
    return orphans


def _count_lost_truths(shard: PlannedShard, manifest: Manifest) -> tuple[int, int]:
    """Samples of a shard that came with boxes, and how many of these lost all of them because they
    were made for another picture."""
    sampled = {entry.key for entry in manifest.samples}
    with_boxes = {
        i.key
        for i in shard.inputs
        if isinstance(i, Picture) and i.truth and i.truth["boxes"] and i.key in sampled
    }
    lost = {note.key for note in manifest.notes if note.reason.startswith("truth dropped")}
    return len(with_boxes), len(with_boxes & lost)


def _check_something_to_train_on(
    plan: Sequence[PlannedShard], config: IngestConfig, dropped: DroppedRecords
) -> None:
    trained_on = [i for shard in plan if shard.split == "train" for i in shard.inputs]
    if not any(isinstance(i, Picture) for i in trained_on):
        left_out = "".join(
            f"; {count} x {reason} ({', '.join(dropped.examples[reason][:1])})"
            for reason, count in sorted(dropped.items())
        )
        raise SourceError(
            f"source {config.source!r} gives no picture to train on ({_first_reasons(trained_on)}"
            f"{left_out}); expected some that ingest.heldout_fraction = "
            f"{config.heldout_fraction:g} leaves"
        )


def _first_reasons(inputs: Sequence[Picture | Failure]) -> str:
    reasons = [i.reason for i in inputs if isinstance(i, Failure)]
    return f"the first failures: {'; '.join(reasons[:3])}" if reasons else "it is empty"
