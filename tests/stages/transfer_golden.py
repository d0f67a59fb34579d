"""Golden scores that the official scripts printed, for the tests of the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden" / "tasks"


def golden_json(name: str) -> Any:
    """A JSON file of the folder."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def golden_lines(name: str) -> list[Any]:
    """A JSON-lines file of the folder."""
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]
