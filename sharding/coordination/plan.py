"""The plan of a folder of shards: what the workers in it have agreed to make."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sharding.coordination.work_queue import FOLDER
from sharding.format.schema import ShardError
from sharding.writing.atomic import canonical_json, sha256_of

NAME = "plan.json"
SCHEMA = "boxless/claims/2"


def make_plan(
    num_inputs: Mapping[str, int], fingerprints: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The plan of shards with these numbers of inputs and fingerprints, both by tar."""
    return {
        "schema": SCHEMA,
        "settings": sha256_of({tar: dict(one) for tar, one in fingerprints.items()}),
        "fingerprint": _shared(fingerprints.values()),
        "num_shards": len(num_inputs),
        "num_inputs": sum(num_inputs.values()),
    }


def read_plan(out: Path) -> dict[str, Any] | None:
    """The plan in `out`: settings (a digest), fingerprint, num_shards and num_inputs; None where no
    worker is or was active."""
    try:
        plan = json.loads((out / FOLDER / NAME).read_bytes())
        return plan if plan["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_plan(out: Path, plan: Mapping[str, Any], token: str) -> None:
    """Write the plan of the worker `token`, whole at every moment. Raises FileNotFoundError where
    the folder of claims is removed."""
    hidden = out / FOLDER / f".{NAME}.{token}"
    hidden.write_bytes(canonical_json(plan) + b"\n")
    os.replace(hidden, out / FOLDER / NAME)


def remove_plan(out: Path) -> None:
    """Remove the plan of `out`, if it can be removed."""
    with contextlib.suppress(OSError):
        (out / FOLDER / NAME).unlink(missing_ok=True)


def other_settings_error(
    out: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None, who: str
) -> ShardError:
    """The error of a worker with the plan `ours` where those of `who` have the plan `theirs`."""
    own = ours["fingerprint"]
    other = theirs["fingerprint"] if theirs else own
    differ = [name for name in sorted({*own, *other}) if own.get(name) != other.get(name)]
    return ShardError(
        f"{out}: got other settings ({', '.join(differ) or 'inputs'}) than those of {who}; expected "
        "all workers of a folder to have the same. Wait until the others have ended or stop them, "
        "or use another folder"
    )


def _shared(fingerprints: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The entries that all fingerprints have in common."""
    shared: set[tuple[str, str]] | None = None
    for fingerprint in fingerprints:
        shared = set(fingerprint.items()) & (fingerprint.items() if shared is None else shared)
    return dict(shared or ())
