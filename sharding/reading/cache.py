"""A bounded cache of pieces of remote shards, shared by a rank and its workers.

Its bytes are a ring on disk without a name: new pieces overwrite the oldest ones, and the index of
where a piece begins is shared memory. It never says that a piece is right: what was overwritten
while it was read, or half written by a worker that was killed, comes out as other bytes. Whoever
asks checks the CRC-32 of the sample, which is known, and takes wrong bytes for a miss. So nothing
has to be held locked while bytes are read or written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any

from sharding.reading.anonymous_file import AnonymousFile

# One place of the index: digest of the piece's name, offset in the ring, length.
_SLOT = struct.Struct("<16sQQ")
# The index begins after the ring's head: the offset at which the next piece is written.
_HEAD = struct.Struct("<Q")
_INDEX_AT = 4096
# Slots that a name may take, so that few names push each other out.
_NUM_WAYS = 8
# One slot for so many bytes of the ring: samples are larger, so there are slots enough.
_BYTES_A_SLOT = 16 * 1024


class Cache:
    """At most `num_bytes` of pieces by name; a full or missing disk only means that it keeps
    less."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._num_sets = 64 + num_bytes // _BYTES_A_SLOT // _NUM_WAYS
        self._ring_at = _INDEX_AT + self._num_sets * _NUM_WAYS * _SLOT.size
        self._file = AnonymousFile(self._ring_at, on_disk=True)

    def get(self, name: str) -> bytes | None:
        """The piece of that name, to be checked by the caller, or None."""
        digest, slots = self._slots(name)
        with self._locked():
            places = {owner: place for owner, *place in map(self._read_slot, slots)}
        offset, length = places.get(digest, (0, 0))
        if not length or offset + length > self._num_bytes:
            return None
        return os.pread(self._file.descriptor, length, self._ring_at + offset)

    def put(self, name: str, piece: bytes) -> None:
        """Keeps a piece, in the place of the oldest ones."""
        if len(piece) > self._num_bytes:
            return
        with self._locked():
            (offset,) = _HEAD.unpack_from(self._file.memory)
            if offset + len(piece) > self._num_bytes:
                offset = 0
            _HEAD.pack_into(self._file.memory, 0, offset + len(piece))
        with contextlib.suppress(OSError):
            if os.pwrite(self._file.descriptor, piece, self._ring_at + offset) == len(piece):
                self._enter(name, offset, len(piece))

    def _enter(self, name: str, offset: int, length: int) -> None:
        """Writes a name into its own slot, else a free one, else another's."""
        digest, slots = self._slots(name)
        with self._locked():
            owners = [self._read_slot(slot)[0] for slot in slots]
            for owner in (digest, bytes(len(digest))):
                if owner in owners:
                    way = owners.index(owner)
                    break
            else:
                way = digest[-1] % _NUM_WAYS
            _SLOT.pack_into(self._file.memory, slots[way], digest, offset, length)

    def _read_slot(self, slot: int) -> tuple[Any, ...]:
        return _SLOT.unpack_from(self._file.memory, slot)

    def _slots(self, name: str) -> tuple[bytes, list[int]]:
        """A name's digest, and where the slots lie that it may take."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        first = int.from_bytes(digest[:8], "little") % self._num_sets * _NUM_WAYS
        return digest, [_INDEX_AT + (first + way) * _SLOT.size for way in range(_NUM_WAYS)]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes out for some instructions; the kernel frees it if we are killed."""
        fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX, _INDEX_AT)
        try:
            yield
        finally:
            fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, _INDEX_AT)
