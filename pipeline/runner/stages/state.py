"""The state of a stage in its folder: begun, and, written last, complete.

``started.json`` says what shapes the output that is under way, ``stage.json`` what shaped the one
that is there. Both hold it readably (``shaped_by``), so that a later start can say what changed,
and as a fingerprint.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runner.run_folder import RunFolder
from pipeline.runner.stages.stage_graph import StageKind
from sharding.tools.verify import verify_paths
from sharding.writing.atomic import sha256_file, sha256_of, write_json

_SCHEMA = "boxless/stage/1"
_STARTED, _DONE = "started.json", "stage.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage's record.

    shaped_by: all that shapes its output: parts of the recipe, content of its inputs, version.
    seconds: work so far, over all starts but those that were killed.
    finished: when, as ISO 8601 with the zone; empty in ``started.json``.
    outputs: size in bytes and SHA-256 of each file that makes it complete, by path in the run.
    figures: what is worth showing of it.
    """

    stage: str
    shaped_by: dict[str, Any]
    seconds: float = 0.0
    finished: str = ""
    outputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that shapes the output."""
        return sha256_of(self.shaped_by)

    @property
    def content(self) -> str:
        """SHA-256 of the output: what stages that read it depend on."""
        return sha256_of(self.outputs)


def write_started(run: RunFolder, kind: StageKind, record: StageRecord) -> None:
    """Say that the stage began: from here on its output is not complete."""
    _write(kind.folder(run) / _STARTED, record)
    (kind.folder(run) / _DONE).unlink(missing_ok=True)


def write_done(run: RunFolder, kind: StageKind, record: StageRecord) -> None:
    """Say that the stage is complete."""
    _write(kind.folder(run) / _DONE, record)
    (kind.folder(run) / _STARTED).unlink(missing_ok=True)


def read_started(run: RunFolder, kind: StageKind) -> StageRecord | None:
    """What is under way, or was when it was stopped."""
    return _read(kind.folder(run) / _STARTED)


def read_done(run: RunFolder, kind: StageKind) -> StageRecord | None:
    """The record of a complete stage; None where there is none, whatever else lies there."""
    return _read(kind.folder(run) / _DONE)


def finished_record(
    run: RunFolder, kind: StageKind, started: StageRecord, figures: dict[str, Any]
) -> StageRecord:
    """The record of a stage that just ended. FileNotFoundError when it left its output undone."""
    if not any(run.root.glob(kind.outputs[0])):
        raise FileNotFoundError(f"{kind.name} ended and left no {run.root / kind.outputs[0]}")
    paths = {path for pattern in kind.outputs for path in run.root.glob(pattern) if path.is_file()}
    outputs = {
        str(path.relative_to(run.root)): (path.stat().st_size, sha256_file(path)) for path in paths
    }
    return StageRecord(
        stage=kind.name,
        shaped_by=started.shaped_by,
        seconds=started.seconds,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        outputs=outputs,
        figures=figures,
    )


def faults(run: RunFolder, kind: StageKind, record: StageRecord) -> list[str]:
    """What is wrong with the output of a complete stage, by a quick look: sizes, and manifests of
    shards; not every byte (``boxless verify`` reads them all)."""
    found = []
    for name, (size_bytes, _) in record.outputs.items():
        path = run.root / name
        if not path.is_file():
            found.append(f"{name} is gone")
        elif path.stat().st_size != size_bytes:
            found.append(f"{name} has {path.stat().st_size} bytes; it had {size_bytes}")
    if kind.is_shards and not found:
        found += [
            f"{fault.tar}: {fault.cause}" for fault in verify_paths([kind.folder(run)], full=False)
        ]
    return found


def _write(path: Path, record: StageRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": _SCHEMA, "fingerprint": record.fingerprint} | asdict(record))


def _read(path: Path) -> StageRecord | None:
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.pop("schema") != _SCHEMA:
            return None
        fingerprint = values.pop("fingerprint")
        values["outputs"] = {name: tuple(pair) for name, pair in values["outputs"].items()}
        record = StageRecord(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or cut off, or of another version: then it is not done
    return record if record.fingerprint == fingerprint else None
