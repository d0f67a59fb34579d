"""From a corpus to image shards: every input is a sample or a recorded failure.

Reached from `pipeline` as `boxless ingest`. Input i of a split goes into its shard
i // samples_per_shard, so names and contents of shards are fixed before any picture is read: a
shard whose manifest has the right fingerprint is left alone, and a run that was stopped goes on
with the next.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from sharding.catalog import NAME, Catalog, write_catalog
from sharding.manifest import is_done, manifest_path, read_manifest
from sharding.schema import Failure, Note, Sample, ShardError
from sharding.write import write_shard
from stages.ingest.coco import CocoSource
from stages.ingest.config import IngestConfig
from stages.ingest.nlvr import NlvrSource
from stages.ingest.sample import make_sample
from stages.ingest.source import Picture, Source, SourceError, shown
from stages.ingest.summary import print_summary
from stages.ingest.toy import ToySource
from stages.ingest.webdataset import WebdatasetSource
from stages.progress import Progress

STAGE = "ingest/1"  # the number rises when the same inputs would give other samples
PATHS = ("root", "captions", "instances")
MAX_THREADS = 16
AHEAD_PER_THREAD = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A tar to be: its name, its split and what goes into it."""

    tar: str
    split: str
    inputs: Sequence[Picture | Failure]


def ingest(config: IngestConfig, *, seed: int, out: Path) -> Catalog:
    """Write the corpus as image shards into the folder `out`, catalog last; returns the catalog.

    Done shards are left as they are; tars of an earlier ingest that are no part of this one are
    removed. Counts and reasons are printed. Raises SourceError (a ValueError) where the corpus is
    not what `config` says, or holds nothing to train on.
    """
    source = open_source(config, seed=seed)
    plan = plan_shards(source.pictures(), samples_per_shard=config.samples_per_shard)
    trained_on = [i for shard in plan if shard.split == "train" for i in shard.inputs]
    if not any(isinstance(i, Picture) for i in trained_on):
        raise SourceError(
            f"source {config.source!r} gives no picture to train on ({_first_reasons(trained_on)})"
            f"; expected some that ingest.heldout_fraction = {config.heldout_fraction:g} leaves"
        )
    write_shards(plan, config, fingerprint=fingerprint_of(config, source, seed=seed), out=out)
    manifests = [read_manifest(out / shard.tar) for shard in plan]
    print_summary([(shard.split, manifest) for shard, manifest in zip(plan, manifests)])
    of_train = [m for shard, m in zip(plan, manifests) if shard.split == "train"]
    if not any(manifest.num_ok for manifest in of_train):
        raise SourceError(
            f"no input of the train split gave a sample ({_first_reasons(of_train[0].failures)}); "
            f"each one's reason is in {out}/train-*.tar.json"
        )
    return write_catalog(
        out,
        kind="images",
        splits={shard.tar: shard.split for shard in plan},
        about={
            "label_names": list(source.label_names),
            "attribute_names": list(source.attribute_names),
            "source": config.source,
        },
    )


def open_source(config: IngestConfig, *, seed: int) -> Source:
    """The source that the recipe names; SourceError where its paths or files are wrong."""
    if config.source == "toy":
        return ToySource(num_train=config.num_train, num_heldout=config.num_heldout, seed=seed)
    assert config.root is not None  # IngestConfig has seen to it
    if config.source == "coco":
        assert config.captions is not None
        return CocoSource(
            root=config.root,
            captions=config.captions,
            instances=config.instances,
            seed=seed,
            heldout_fraction=config.heldout_fraction,
        )
    if config.source == "nlvr":
        return NlvrSource(
            root=config.root,
            num_orders=config.nlvr_num_orders,
            seed=seed,
            heldout_fraction=config.heldout_fraction,
        )
    return WebdatasetSource(root=config.root, seed=seed, heldout_fraction=config.heldout_fraction)


def plan_shards(
    inputs: Sequence[Picture | Failure], *, samples_per_shard: int
) -> list[PlannedShard]:
    """Deal the inputs to shards, in order; heldout shards first, as tars are named.

    Of pictures with one key the first is kept, the others become failures. An input that failed in
    the source has no split and is counted with train.
    """
    of_split: dict[str, list[Picture | Failure]] = {"heldout": [], "train": []}
    first_of_key: dict[str, Picture] = {}
    for i in inputs:
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
            inputs=members[start:start + samples_per_shard],
        )
        for split, members in of_split.items()
        for start in range(0, len(members), samples_per_shard)
    ]


def fingerprint_of(config: IngestConfig, source: Source, *, seed: int) -> dict[str, str]:
    """Everything that shapes the shards, by name: recipe part, corpus and versions.

    Not the paths, as what lies there is in the source's own fingerprint. Pillow draws the toy
    pictures and decides which other ones are whole.
    """
    recipe = {k: v for k, v in dataclasses.asdict(config).items() if k not in PATHS}
    return {
        "stage": STAGE,
        "seed": str(seed),
        "corpus": source.fingerprint(),
        "pillow": PIL.__version__,
        **{f"ingest.{name}": str(value) for name, value in recipe.items()},
    }


def write_shards(
    plan: Sequence[PlannedShard], config: IngestConfig, *, fingerprint: dict[str, str], out: Path
) -> None:
    """Write the shards that are not done, and remove those that are no part of the plan."""
    missing = [shard for shard in plan if not is_done(out / shard.tar, fingerprint)]
    strangers = _strangers(out, {shard.tar for shard in plan})
    if missing or strangers:
        # A catalog says that a folder is complete, which it is not until the end.
        (out / NAME).unlink(missing_ok=True)
    total = sum(len(shard.inputs) for shard in plan)
    start = total - sum(len(shard.inputs) for shard in missing)
    with Progress("ingest", total=total, unit="pictures", start=start) as progress:
        for shard in missing:
            results = _results(shard.inputs, config, progress)
            write_shard(out / shard.tar, results, fingerprint=fingerprint)
    for tar in strangers:
        # The manifest first, so that a tar without one is never taken for done.
        manifest_path(tar).unlink(missing_ok=True)
        tar.unlink(missing_ok=True)


def _results(
    inputs: Sequence[Picture | Failure], config: IngestConfig, progress: Progress
) -> Iterator[Sample | Failure | Note]:
    """What the inputs became, in their order. Pillow decodes outside of Python's lock, so threads
    use all cores; a bounded number of pictures is in memory."""
    num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    ahead = num_threads * AHEAD_PER_THREAD
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(inputs), ahead):
            make = functools.partial(make_sample, config=config)
            for results in pool.map(make, inputs[start:start + ahead]):
                yield from results
                progress.advance()


def _strangers(out: Path, planned: set[str]) -> list[Path]:
    """Tars in `out` that an earlier ingest wrote, by their manifests, and this one does not."""
    strangers = []
    for tar in sorted(out.glob("*.tar")):
        if tar.name in planned:
            continue
        try:
            stage = read_manifest(tar).fingerprint.get("stage", "")
        except ShardError:
            continue  # not ours to remove
        if stage.startswith("ingest/"):
            strangers.append(tar)
    return strangers


def _first_reasons(inputs: Sequence[Picture | Failure]) -> str:
    reasons = [i.reason for i in inputs if isinstance(i, Failure)]
    return f"the first failures: {'; '.join(reasons[:3])}" if reasons else "it is empty"
