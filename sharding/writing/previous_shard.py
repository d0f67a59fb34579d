"""The previous version of a shard, whose samples are reused when it is written again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sharding.format.manifest import SampleEntry, read_manifest
from sharding.format.schema import EncodedSample, Note, ShardError
from sharding.reading.sample_reader import OpenTar, check_crc32, read_payloads


class PreviousShard:
    """The samples of the shard `tar` as it is now, if its manifest has `fingerprint`.

    Empty where there is no such shard. Every sample is checked by its CRC-32; a damaged one counts
    as not there. The tar stays open, so it may be replaced meanwhile.
    """

    def __init__(self, tar: Path, fingerprint: Mapping[str, str]) -> None:
        self._entries: dict[str, SampleEntry] = {}
        self._notes: dict[str, list[Note]] = {}
        try:
            manifest = read_manifest(tar)
            # All of `fingerprint`; the shard may have been shaped by more, as by its own inputs.
            if fingerprint.items() <= manifest.fingerprint.items():
                self._tar = OpenTar(tar)
                self._entries = {entry.key: entry for entry in manifest.samples}
        except ShardError:
            return
        for note in manifest.notes:
            self._notes.setdefault(note.key, []).append(note)

    def sample(self, key: str) -> EncodedSample | None:
        """The sample of that key, its bytes as they are; None where it is not there or damaged."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        try:
            payloads = read_payloads(self._tar, entry)
            check_crc32(payloads, entry)
        except ShardError:
            return None
        return EncodedSample(key=key, width=entry.width, height=entry.height, payloads=payloads)

    def notes(self, key: str) -> list[Note]:
        """What was dropped from the sample of that key."""
        return self._notes.get(key, [])
