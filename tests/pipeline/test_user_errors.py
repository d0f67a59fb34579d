"""What the machine does not grant is told in words; oracle: the message, by hand."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest

from pipeline.runner.output_encoding import replace_unencodable
from pipeline.runner.run_folder import RunFolder
from pipeline.runner.user_errors import describe_error, is_user_error


def test_errors_of_the_system_say_what_to_do() -> None:
    """A full disk and a read-only one; a file that is missing is a bug of ours."""
    full = OSError(errno.ENOSPC, "No space left on device", "/x/a.tar")
    assert is_user_error(full)
    assert describe_error(full) == (
        "/x/a.tar: No space left on device; the disk is full: free some space, then run the same "
        "command again."
    )
    assert is_user_error(PermissionError(errno.EACCES, "Permission denied", "/x"))
    assert not is_user_error(FileNotFoundError(errno.ENOENT, "No such file", "/x"))


def test_output_in_another_encoding_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check mark on a terminal in Latin-1 becomes a question mark."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1", write_through=True))
    with pytest.raises(UnicodeEncodeError):
        print("✓")
    replace_unencodable()
    print("✓ done")
    assert raw.getvalue() == b"? done\n"


def test_looking_at_a_run_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks cannot be made, so nobody works in it."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    assert not RunFolder(tmp_path).is_busy()
