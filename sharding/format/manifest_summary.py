"""The summary of a manifest: the fields before its samples, read without reading those.

Counts, failures, notes and fingerprint of thousands of shards at once are for `boxless status` and
for the summaries at the end of a stage; who needs to know that a shard is done reads it all
(sharding.format.manifest). The keys of a manifest are sorted, so "samples" comes after all of
these.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from boxless.errors import BoxlessError
from sharding.format.manifest import Manifest, manifest_path, read_manifest
from sharding.format.schema import Failure, Note, ShardError

# Inside a JSON text the quotes would be escaped.
_SAMPLES = b',"samples":['
_PIECE_BYTES = 1 << 12


@dataclass(frozen=True, kw_only=True)
class ManifestSummary:
    """The same fields as in Manifest; num_input = num_ok + num_failed."""

    tar_bytes: int
    num_input: int
    num_ok: int
    failures: tuple[Failure, ...]
    notes: tuple[Note, ...]
    fingerprint: dict[str, str]

    @property
    def num_failed(self) -> int:
        """Inputs that gave no sample."""
        return len(self.failures)


def read_manifest_summary(tar: Path) -> ManifestSummary:
    """The summary of the manifest of `tar`; ShardError if it is missing or invalid."""
    try:
        raw = json.loads(_summary_bytes(manifest_path(tar)) + b"}")
        summary = ManifestSummary(
            tar_bytes=raw["bytes"],
            num_input=raw["counts"]["input"],
            num_ok=raw["counts"]["ok"],
            failures=tuple(Failure(**failure) for failure in raw["failures"]),
            notes=tuple(Note(**note) for note in raw["notes"]),
            fingerprint=dict(raw["fingerprint"]),
        )
        if summary.num_input != summary.num_ok + summary.num_failed:
            raise BoxlessError("the counts do not add up")
        return summary
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        # In another order, or broken: the full reader takes it or says what is wrong with it.
        return _summary_of(read_manifest(tar))


def _summary_bytes(path: Path) -> bytes:
    """The file up to its samples; ValueError if it has none."""
    head = b""
    with open(path, "rb") as source:
        while piece := source.read(_PIECE_BYTES):
            # Looked for from a little before the piece, as it may begin in the last one.
            start = max(0, len(head) - len(_SAMPLES))
            head += piece
            if (end := head.find(_SAMPLES, start)) >= 0:
                return head[:end]
    raise BoxlessError(f"{path}: got no samples")


def _summary_of(manifest: Manifest) -> ManifestSummary:
    return ManifestSummary(
        tar_bytes=manifest.tar_bytes,
        num_input=manifest.num_input,
        num_ok=manifest.num_ok,
        failures=manifest.failures,
        notes=manifest.notes,
        fingerprint=manifest.fingerprint,
    )


def read_manifest_summaries(folder: Path) -> dict[str, ManifestSummary]:
    """{tar: summary} of every manifest in `folder` that can be read, by name."""
    found = {}
    for path in sorted(folder.glob("*.tar.json")):
        try:
            found[path.name.removesuffix(".json")] = read_manifest_summary(path.with_suffix(""))
        except ShardError:
            continue  # not done, then
    return found
