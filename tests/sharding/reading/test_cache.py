"""Tests of sharding.reading.cache and of the anonymous file that it lies in."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import signal
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.reading.anonymous_file import AnonymousFile
from sharding.reading.cache import Cache

fork = multiprocessing.get_context("fork")


def _piece(number: int, num_bytes: int) -> bytes:
    """Bytes that say whose they are, and whether they are right: by their CRC-32."""
    data = number.to_bytes(8, "little") + bytes([number % 251]) * (num_bytes - 12)
    return data + zlib.crc32(data).to_bytes(4, "little")


def _is_right(number: int, piece: bytes) -> bool:
    return (
        piece[:8] == number.to_bytes(8, "little")
        and zlib.crc32(piece[:-4]).to_bytes(4, "little") == piece[-4:]
    )


def test_what_is_put_is_got_by_its_name() -> None:
    """Oracle: a dict, while all fits; the last put of a name counts."""
    cache, pieces = Cache(1 << 20), {f"name {n}": _piece(n, 100 + n) for n in range(150)}
    for name, piece in pieces.items():
        cache.put(name, b"older" + piece)
        cache.put(name, piece)
    assert {name: cache.get(name) for name in pieces} == pieces
    assert cache.get("another") is None


@settings(deadline=None, derandomize=True, max_examples=60)
@given(num_bytes=st.integers(0, 4000), sizes=st.lists(st.integers(12, 1500), max_size=40))
def test_it_is_bounded_and_right_where_it_does_not_say_otherwise(
    num_bytes: int, sizes: list[int]
) -> None:
    """Oracle: the file's size; the last piece that fits is kept, pieces that are right are its
    own."""
    cache = Cache(num_bytes)
    index_bytes = os.fstat(cache._file.descriptor).st_size
    for number, size in enumerate(sizes):
        cache.put(f"name {number}", _piece(number, size))
        assert os.fstat(cache._file.descriptor).st_size <= index_bytes + num_bytes
        if size <= num_bytes:
            assert cache.get(f"name {number}") == _piece(number, size)
    for number in range(len(sizes)):
        piece = cache.get(f"name {number}")
        assert piece is None or not _is_right(number, piece) or len(piece) == sizes[number]


def _put_and_get(cache: Cache, worker: int) -> None:
    for number in range(300):
        cache.put(f"name {number}", _piece(number, 700 + number % 50))
        cache.get(f"name {(number * 7 + worker) % 300}")


def test_forked_processes_share_it() -> None:
    """Oracle: after four at once, all in each other's way, every last piece is right or missing,
    and nearly all are there."""
    cache = Cache(1 << 20)
    workers = [fork.Process(target=_put_and_get, args=(cache, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [cache.get(f"name {number}") for number in range(300)]
    assert all(piece is None or _is_right(n, piece) for n, piece in enumerate(found))
    assert sum(piece is not None for piece in found) > 290


def _die_locked(cache: Cache) -> None:
    with cache._locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_inside_holds_nobody_up() -> None:
    """Oracle: a process killed with the lock held; then a put and a get, which end."""
    cache = Cache(1000)
    worker = fork.Process(target=_die_locked, args=(cache,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    cache.put("name", b"piece")
    assert cache.get("name") == b"piece"


def test_a_full_disk_means_a_smaller_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a disk that has no room, or room for half a piece only: nothing wrong is kept."""
    cache = Cache(1000)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.put("name", b"piece")
    assert cache.get("name") is None
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: len(data) // 2)
    cache.put("name", b"piece")
    assert cache.get("name") is None


@pytest.mark.parametrize("on_disk", [True, False])
def test_it_has_no_name_and_goes_with_its_last_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    """Oracle: the folder for temporary files and /dev/shm, before, while and after; the kernel's
    count of names, and its list of what this process has open."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared, opened = os.listdir("/dev/shm"), os.listdir("/proc/self/fd")
    file = AnonymousFile(10_000, on_disk=on_disk)
    assert os.fstat(file.descriptor).st_nlink == 0
    assert bytes(file.memory) == bytes(10_000)
    assert not os.listdir(tmp_path) and os.listdir("/dev/shm") == shared
    del file
    assert os.listdir("/proc/self/fd") == opened


def test_a_pickled_copy_begins_empty_unless_it_is_for_a_child() -> None:
    """Oracle: what was written before; spawned children are in test_store."""
    cache = Cache(1000)
    cache.put("name", b"piece")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get("name") is None and cache.get("name") == b"piece"
    copy.put("name", b"other")
    assert copy.get("name") == b"other" and cache.get("name") == b"piece"


def test_its_lock_keeps_others_out() -> None:
    """Oracle: a child that asks for the lock without waiting is refused while we hold it."""
    cache = Cache(1000)

    def ask(descriptor: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(3)
        os._exit(4)

    codes = []
    with cache._locked():
        codes.append(fork.Process(target=ask, args=(cache._file.descriptor,)))
        codes[0].start()
        codes[0].join()
    codes.append(fork.Process(target=ask, args=(cache._file.descriptor,)))
    codes[1].start()
    codes[1].join()
    assert [process.exitcode for process in codes] == [3, 4]
