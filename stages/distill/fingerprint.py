"""The fingerprint of an object shard: all that shaped its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from sharding.format.catalog import ShardEntry
from sharding.writing.atomic import sha256_of
from stages.detector.device import pick_device
from stages.distill.config import DistillConfig
from stages.distill.inference.batch_plan import RULES as BATCH_RULES
from stages.distill.object_source import ObjectSource
from stages.distill.text.phrases import Chunker
from stages.distill.text.similarity import Similarity
from stages.library_versions import VERSIONS, accept_other_versions, library_versions

VERSION = "distill/2"
"""Names the rules of this stage in fingerprints; a change that moves any output raises it."""
# Their effect is in the fingerprints of teacher, chunker or similarity, or they belong to the
# machine; what moves no last digits in fp32 is in _arithmetic.
_OUTSIDE_THE_FINGERPRINT = (
    "lease_seconds",
    "accept_versions",
    "teacher",
    "detectron2",
    "features",
    "batch_size",
    "bucket_px",
    "num_decoders",
    "phrases",
    "parser",
    "similarity",
    "num_threads",
    "num_parsers",
)


def settings_fingerprint(
    config: DistillConfig, object_source: ObjectSource, chunker: Chunker, similarity: Similarity
) -> dict[str, str]:
    """What shapes every shard, the input apart."""
    shaping = {k: v for k, v in asdict(config).items() if k not in _OUTSIDE_THE_FINGERPRINT}
    return {
        "distill": sha256_of(shaping),
        "teacher": object_source.fingerprint,
        "phrases": chunker.fingerprint,
        "similarity": similarity.fingerprint,
        **_arithmetic(config),
        "rules": VERSION,
        VERSIONS: library_versions(*_libraries(config)),
    }


def _libraries(config: DistillConfig) -> list[str]:
    """Whose versions may move the shards' bytes."""
    libraries = ["torch", "numpy", "Pillow", "spacy"]
    if config.teacher == "detectron2":
        libraries += ["detectron2", "torchvision"]
    if config.teacher == "transformers" or config.similarity.kind in ("bert", "sentence"):
        libraries += ["transformers"]
    return libraries


def _arithmetic(config: DistillConfig) -> dict[str, str]:
    """What moves the last digits of a detector's objects, and so the bytes of a shard: a GPU, and,
    other than in fp32, how many pictures run together, which ones, and what they are padded to.
    Nothing on the CPU in fp32, or where others' features are joined."""
    if config.teacher == "features":
        return {}
    moving: dict[str, str] = {}
    if config.precision != "fp32":
        moving = {"batch_size": str(config.batch_size), "batches": BATCH_RULES}
    if config.bucket_px > 1:
        moving["bucket_px"] = str(config.bucket_px)
    device = pick_device()
    return (
        moving if device.type == "cpu" else {**moving, "device": torch.cuda.get_device_name(device)}
    )


def with_input(fingerprint: dict[str, str], shard: ShardEntry) -> dict[str, str]:
    """The whole fingerprint of the object shard that is made of an image shard."""
    return {**fingerprint, "input": shard.manifest_sha256}


def shard_fingerprints(
    config: DistillConfig,
    fingerprint: dict[str, str],
    shards: Sequence[ShardEntry],
    out: Path,
    log: Callable[[str], None],
) -> dict[str, dict[str, str]]:
    """What each shard's manifest has to have for the shard to be done."""
    wanted = {shard.tar: with_input(fingerprint, shard) for shard in shards}
    return accept_other_versions(out, wanted, log=log) if config.accept_versions else wanted
