"""Reads a tar once, sequentially, and hashes it while others read parts of it."""

from __future__ import annotations

import hashlib

from sharding.reading.sample_reader import OpenTar

PIECE_BYTES = 1 << 20


class SequentialReader:
    """The bytes of `source`, read at non-decreasing offsets.

    Holds a piece, or as much as was asked for at once. Raises ShardError as OpenTar.read.
    """

    def __init__(self, source: OpenTar) -> None:
        self.num_bytes = source.num_bytes
        self._source = source
        self._digest = hashlib.sha256()
        self._held = b""
        self._start = self._end = 0  # what is held: bytes _start to _end

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` from `offset`, in the tar and not below the offset asked for
        before."""
        assert self._start <= offset <= offset + num_bytes <= self.num_bytes, (offset, num_bytes)
        while self._end < offset:
            self._fetch(keep_from=self._end, num_bytes=PIECE_BYTES)
        missing = offset + num_bytes - self._end
        if missing > 0:
            self._fetch(keep_from=offset, num_bytes=max(missing, PIECE_BYTES))
        at = offset - self._start
        return self._held[at : at + num_bytes]

    def sha256(self) -> str:
        """SHA-256, in hex, of the whole tar; reads what is left of it."""
        while self._end < self.num_bytes:
            self._fetch(keep_from=self._end, num_bytes=PIECE_BYTES)
        return self._digest.hexdigest()

    def _fetch(self, *, keep_from: int, num_bytes: int) -> None:
        """Reads another `num_bytes`, or to the end of the tar, and frees what lies before."""
        piece = self._source.read(self._end, min(num_bytes, self.num_bytes - self._end))
        self._digest.update(piece)
        self._held = self._held[keep_from - self._start :] + piece
        self._start = keep_from
        self._end += len(piece)
