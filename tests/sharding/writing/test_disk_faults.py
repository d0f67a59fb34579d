"""A disk that fails once, at every write and every sync of a run in turn: the error names the file,
no shard is harmed, and the next run ends well."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.coordination.claims import Worker
from sharding.format.catalog import write_catalog
from sharding.format.schema import Sample, ShardError
from sharding.tools.verify import verify_paths
from sharding.writing.shard_writer import write_shard

TARS = ("train-000000.tar", "train-000001.tar")


def _run(out: Path, samples: dict[str, Sample], version: str) -> None:
    """One worker writes all shards and the catalog."""
    fingerprints = {tar: {"version": version} for tar in TARS}
    with Worker(out, dict.fromkeys(TARS, 1), fingerprints, log=lambda text: None) as worker:
        for claim in worker.claims():
            with claim:
                write_shard(
                    out / claim.tar,
                    claim.track([samples[claim.tar]]),
                    fingerprint=fingerprints[claim.tar],
                    check_owner=claim.check_owner,
                )
        with worker.finalize() as is_last:
            if is_last:
                write_catalog(out, kind="objects", splits=dict.fromkeys(TARS, "train"), metadata={})


@pytest.mark.parametrize("error_number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "pwrite", "writev", "replace", "link"])
def test_a_disk_that_fails_once_is_named_and_harms_nothing(
    call: str,
    error_number: int,
    tmp_path: Path,
    make_sample: Callable[..., Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: for each call that a run over older shards makes, in turn: a path in the error, which
    is the system's or one that names the path itself; verify, fast, of what has manifests; and a
    second run, after which full verify finds nothing."""
    samples = {tar: make_sample(number) for number, tar in enumerate(TARS)}
    real, num_failed = getattr(os, call), 0
    for number in range(1, 100):
        out, count = tmp_path / str(number), 0
        _run(out, samples, "old")

        def fail_once(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise OSError(error_number, os.strerror(error_number))
            return real(*given, **named)

        monkeypatch.setattr(os, call, fail_once)
        try:
            _run(out, samples, "new")
        except (OSError, ShardError) as error:
            num_failed += 1
            place = str(error.filename) if isinstance(error, OSError) else str(error)
            assert call == "replace" or place.startswith(str(out)), f"{call} {number}: {error!r}"
        monkeypatch.setattr(os, call, real)
        if count < number:
            break
        causes = [fault.cause for fault in verify_paths(out, full=False)]
        assert all("no manifest" in one or "catalog" in one for one in causes), causes
        _run(out, samples, "new")
        assert verify_paths(out) == [] and not list(out.glob(".*"))
    assert num_failed >= 2
