"""Reads files of a run folder that may be missing or truncated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of one a line, without lines that a kill cut."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def points(lines: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of one metric, where a line has both."""
    pairs = ((number(line.get("step")), number(line.get(name))) for line in lines)
    return [(step, value) for step, value in pairs if step is not None and value is not None]
