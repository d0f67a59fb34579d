"""Output to terminals and files that are not in UTF-8."""

from __future__ import annotations

import io
import sys


def replace_unencodable() -> None:
    """Let stdout and stderr write "?" for what their encoding does not have, as a progress bar's
    characters: a terminal in another encoding, cron or a batch system must not end a stage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
