"""Completeness of a shard: every input is exactly one sample or one failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sharding.format.manifest import Manifest, manifest_path
from sharding.format.schema import ShardError

_NUM_SHOWN = 3


def check_completeness(tar: Path, inputs: Iterable[str], manifest: Manifest) -> None:
    """ShardError, naming shard and keys, unless the keys `inputs` are those of `manifest`.

    Keys are counted: inputs that failed may repeat one.
    """
    expected = Counter(inputs)
    got = Counter(sample.key for sample in manifest.samples)
    got.update(failure.key for failure in manifest.failures)
    if got == expected:
        return
    lost, orphans = sorted((expected - got).elements()), sorted((got - expected).elements())
    raise ShardError(
        f"{tar}: got {got.total()} samples and failures, expected one for each of "
        f"{expected.total()} inputs: {len(lost)} are lost ({_first(lost)}), {len(orphans)} are no "
        f"inputs ({_first(orphans)}); remove {manifest_path(tar).name} and run the stage again"
    )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_NUM_SHOWN]) + (", ..." if keys[_NUM_SHOWN:] else "") or "none"
