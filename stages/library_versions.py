"""Versions of libraries in fingerprints, and finished shards made with other versions.

Versions are in a shard's fingerprint under `VERSIONS`, apart from everything that a recipe or an
input decides, so that a shard that differs in nothing else can be detected and, where the recipe
says `accept_versions`, kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sharding.coordination.work_queue import rewrite_requests
from sharding.format.manifest import is_done
from sharding.format.manifest_summary import read_manifest_summary
from sharding.format.schema import ShardError

VERSIONS = "versions"


def library_versions(*libraries: str) -> str:
    """Names and installed versions, as they are in a fingerprint."""
    return ", ".join(f"{name} {_version(name)}" for name in sorted(set(libraries)))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # built in place and found by the path
        return str(import_module(library).__version__)


def accept_other_versions(
    out: Path, fingerprints: Mapping[str, dict[str, str]], *, log: Callable[[str], object]
) -> dict[str, dict[str, str]]:
    """The fingerprints that the shards of `out` must have, by tar: its own for a finished shard
    that differs from `fingerprints` in nothing but versions and that was not requested to be
    written again, else that of `fingerprints`. Says to `log` how many are of which versions."""
    asked = rewrite_requests(out)
    found = {
        tar: wanted if tar in asked else _of_finished_shard(out / tar, wanted)
        for tar, wanted in fingerprints.items()
    }
    others = [own[VERSIONS] for tar, own in found.items() if own != fingerprints[tar]]
    for versions in sorted(set(others)):
        log(
            f"accept_versions: {others.count(versions)} finished shards are of {versions} and stay "
            "as they are; their manifests say so"
        )
    return found


def _of_finished_shard(tar: Path, wanted: dict[str, str]) -> dict[str, str]:
    """The fingerprint of `tar` where it is finished and only its versions are others."""
    try:
        own = read_manifest_summary(tar).fingerprint
    except ShardError:
        return wanted
    is_same = VERSIONS in own and {**own, VERSIONS: wanted[VERSIONS]} == wanted
    return own if is_same and is_done(tar, own) else wanted
