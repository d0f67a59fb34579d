"""A few figures of each stage, read from its output, for the screen and ``boxless status``.

They also serve for a stage that is under way: what it has written so far is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import StageKind
from sharding.format.catalog import read_catalog
from sharding.format.schema import ShardError

_NUM_SHOWN = 6
_METRICS = ("step", "loss", "pictures_per_second", "model_tflops", "mfu")


def figures_of(run: RunFolder, kind: StageKind) -> dict[str, Any]:
    """Names and values; empty when the stage has no figures yet."""
    folder = kind.folder(run)
    if kind.is_shards:
        return _counts(folder)
    return _scores(folder / "scores.json") or _last_metrics(folder / "metrics.jsonl")


def in_words(figures: Mapping[str, Any]) -> str:
    """``step 400, loss 0.318``: the first few, numbers short."""
    shown = list(figures.items())[:_NUM_SHOWN]
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown
    )


def _counts(folder: Path) -> dict[str, Any]:
    try:
        shards = read_catalog(folder).shards
    except ShardError:
        done = len(list(folder.glob("*.tar.json")))
        return {"shards so far": done} if done else {}
    failed = sum(shard.num_failed for shard in shards)
    counts = {"pictures": sum(shard.num_ok for shard in shards), "shards": len(shards)}
    return counts | ({"failed": failed} if failed else {})


def _scores(path: Path) -> dict[str, Any]:
    """The value of each score; what is beside it (chance, baseline), and recalls beyond the
    first, are for the report."""
    try:
        scores = _read_json(path.read_text("utf-8"))
    except OSError:
        return {}
    entries = scores.items() if isinstance(scores, dict) else ()
    values = {
        name: entry["value"]
        for name, entry in entries
        if _has_value(entry) and not name.endswith(("_r5", "_r10"))
    }
    return _numbers(values)


def _has_value(entry: Any) -> bool:
    return isinstance(entry, dict) and "value" in entry


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole line; a run that was killed may have left half of one."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return {}
    last = next(filter(None, (_numbers(_read_json(line)) for line in reversed(lines))), {})
    return {name: last[name] for name in _METRICS if name in last}


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _numbers(values: Any) -> dict[str, Any]:
    """What is a number in a mapping; nothing of anything else."""
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if type(value) in (int, float)}
