"""A job's log of starts, restarts and ends, which ``boxless status`` reads."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any


def record_event(path: Path, kind: str, **details: Any) -> None:
    """Append one event. One write of one line, so that lines of several nodes do not mix."""
    event = {"time_seconds": time.time(), "host": socket.gethostname(), "event": kind, **details}
    line = (json.dumps(event) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
    except OSError:
        return  # a full disk must not end what the event is about


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events, oldest first; lines that were cut off are left out."""
    events = []
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "time_seconds" in event:
            events.append(event)
    return events
