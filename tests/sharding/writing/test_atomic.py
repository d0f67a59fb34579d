"""Tests of sharding.writing.atomic."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharding.writing.atomic import (
    TempFileRemoved,
    canonical_json,
    remove_stale,
    remove_temporary,
    replacing,
    sha256_file,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from sharding.writing.atomic import replacing
with replacing(Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """Oracle: the folder's listing and the old bytes, even for KeyboardInterrupt."""
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as out:
        out.write(b"new")
        assert len(os.listdir(tmp_path)) == 2
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_only_killed_writers_of_the_named_file_lose_their_temporary_files(tmp_path: Path) -> None:
    """Oracle: of a dead writer, a dead writer of another file, and a living one, the first."""
    for name in ("mine", "mine.json"):
        subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path / name)])
    assert len(os.listdir(tmp_path)) == 2
    with replacing(tmp_path / "mine") as out:
        out.write(b"alive")
        remove_stale(tmp_path, {"mine"})
        assert len(os.listdir(tmp_path)) == 2
    names = sorted(os.listdir(tmp_path))
    assert names[0].startswith(".mine.json.") and names[1:] == ["mine"]
    assert (tmp_path / "mine").read_bytes() == b"alive"


def test_a_temporary_file_is_locked_until_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a sweep at the last moment before the rename takes nothing."""
    real = os.replace

    def sweep_first(source: Path, target: Path) -> None:
        remove_stale(tmp_path, {"file"})
        real(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_writer_whose_temporary_file_was_removed_is_reported_so(tmp_path: Path) -> None:
    """Oracle: of two living writers the one of the named file; the old file stays as it was."""
    write_bytes(tmp_path / "mine", b"old")
    with replacing(tmp_path / "other") as other:
        with pytest.raises(TempFileRemoved, match="mine: got no .* took this one for dead"):
            with replacing(tmp_path / "mine") as out:
                out.write(b"new")
                remove_temporary(tmp_path, {"mine"})
        other.write(b"done")
    assert (tmp_path / "mine").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["mine", "other"]


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """Oracle: what a plain open gives; temporary files of mkstemp would be unreadable to others."""
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_written_sorted_indented_and_strict(tmp_path: Path) -> None:
    """Oracle: the bytes, spelled out."""
    write_json(tmp_path / "new" / "a.json", {"b": [1], "a": "é"})
    expected = '{\n "a": "é",\n "b": [\n  1\n ]\n}\n'.encode()
    assert (tmp_path / "new" / "a.json").read_bytes() == expected
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})


def test_hashes_are_of_the_canonical_spelling(tmp_path: Path) -> None:
    """Oracle: hashlib over bytes spelled out."""
    assert canonical_json({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'.encode()
    expected = hashlib.sha256('{"a":"é"}'.encode()).hexdigest()
    assert sha256_of({"a": "é"}) == expected
    write_text(tmp_path / "text", '{"a":"é"}')
    assert sha256_file(tmp_path / "text") == expected


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """A write knows only its descriptor. Oracle: the path in the error, as the user knows it, and
    no name given to an error about something else."""
    path = tmp_path / "a.json"
    with pytest.raises(OSError) as caught, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    with pytest.raises(RuntimeError) as other, replacing(path):  # as PyTorch's, after the disk's
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 67072 vs 67016")
    assert getattr(other.value.__context__, "filename", None) == str(path)
    with pytest.raises(OSError) as caught, replacing(path):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    assert caught.value.filename is None
