"""Standard streams that end no work: those of another encoding, closed ones, and those whose reader
has gone."""

from __future__ import annotations

import errno
import io
import os
import sys

from sharding.writing.atomic import NO_ROOM

_READER_GONE = (errno.EPIPE, errno.EIO)


def replace_unencodable() -> None:
    """Let stdout and stderr write "?" for what their encoding does not have, as a progress bar's
    characters: a terminal in another encoding, cron or a batch system must not end a stage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_closed_streams() -> None:
    """Open /dev/null in the place of each standard stream that this process was started without
    (`>&-`, some daemons): else the next file that is opened would become it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))


def flush_output() -> None:
    """Write what stdout still holds. Where that cannot be, drop it, as Python would try again at
    its exit and show the error as an exception that it ignores; and raise OSError, but not in place
    of another error that is on its way."""
    error_on_its_way = sys.exc_info()[0] not in (None, SystemExit)
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout.fileno())
        if not error_on_its_way:
            raise


def _discard(descriptor: int) -> None:
    """Send what is written to the descriptor from here on to /dev/null."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def outlive_readers() -> None:
    """Discard what is written to stdout and stderr once nobody can read them: training does not end
    with the terminal, the `| head` or the log's disk that its progress goes to."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = _LastingOutput(stream.fileno(), "w", closefd=False)
            buffer = io.BufferedWriter(raw)  # type: ignore[type-var]
            lasting = io.TextIOWrapper(
                buffer,
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


class _LastingOutput(io.FileIO):
    """A descriptor whose writes do not fail where there is no reader or no space."""

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """As of FileIO; what nobody can read counts as written."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _READER_GONE:
                _discard(self.fileno())
            elif error.errno not in NO_ROOM:
                raise
            return len(data)
