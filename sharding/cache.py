"""A bounded cache of pieces of far shards, shared by a rank and its workers.

Reached by sharding.store. Its bytes are a ring on disk without a name: new pieces overwrite the
oldest ones, and the index of where a piece begins is shared memory. It never says that a piece is
right: what was overwritten while it was read, or half written by a worker that was killed, comes
out as other bytes. Whoever asks checks the CRC-32 of the sample, which is known, and takes wrong
bytes for a miss. So nothing has to be held locked while bytes are read or written.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator

from sharding.nameless import Nameless

# One place of the index: digest of the piece's name, offset in the ring, length.
_SLOT = struct.Struct("<16sQQ")
# The index begins after the ring's head: the offset at which the next piece is written.
_HEAD = struct.Struct("<Q")
_INDEX_AT = 4096
# One slot for so many bytes of the ring: samples are larger, so few fall on the same slot.
_BYTES_A_SLOT = 16 * 1024


class Cache:
    """At most `num_bytes` of pieces by name; a full or missing disk only means that it keeps less.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._num_slots = max(64, num_bytes // _BYTES_A_SLOT)
        self._ring_at = _INDEX_AT + self._num_slots * _SLOT.size
        self._file = Nameless(self._ring_at, on_disk=True)

    def get(self, name: str) -> bytes | None:
        """The piece of that name, to be checked by the caller, or None."""
        digest, slot = self._place(name)
        with self._locked():
            owner, offset, length = _SLOT.unpack_from(self._file.memory, slot)
        if owner != digest or offset + length > self._num_bytes:
            return None
        return os.pread(self._file.descriptor, length, self._ring_at + offset)

    def put(self, name: str, piece: bytes) -> None:
        """Keeps a piece, in the place of the oldest ones."""
        if len(piece) > self._num_bytes:
            return
        digest, slot = self._place(name)
        with self._locked():
            offset, = _HEAD.unpack_from(self._file.memory)
            if offset + len(piece) > self._num_bytes:
                offset = 0
            _HEAD.pack_into(self._file.memory, 0, offset + len(piece))
        with contextlib.suppress(OSError):
            if os.pwrite(self._file.descriptor, piece, self._ring_at + offset) == len(piece):
                with self._locked():
                    _SLOT.pack_into(self._file.memory, slot, digest, offset, len(piece))

    def _place(self, name: str) -> tuple[bytes, int]:
        """A name's digest and where its slot lies; another name on the same slot takes it over."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        slot = int.from_bytes(digest[:8], "little") % self._num_slots
        return digest, _INDEX_AT + slot * _SLOT.size

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes out for some instructions; the kernel frees it if we are killed."""
        fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX, _INDEX_AT)
        try:
            yield
        finally:
            fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, _INDEX_AT)
