"""Repairs a folder of shards without deleting anything.

Every byte is read. What becomes of a shard:

    left         its manifest says what the tar holds, to the last byte
    rebuilt      the tar is intact in itself, but its manifest is missing, broken or another tar's:
                 a new one is made from the tar
    quarantined  everything else: tar and manifest are moved to quarantine/, with NAME.reason.txt
    missing      the catalog lists it, and neither tar nor manifest is there

A tar is intact in itself if its headers are consecutive up to the end mark and every sample is
whole. Where catalog.json counts it, size and number of samples must agree. A tar that has exactly
the members of its manifest but other bytes is damaged: which of the two is right cannot be known.

Then catalog.json and the file of shapes are written again over what is left, if they say anything
else; the older catalog.json is kept in quarantine/. A rebuilt
manifest carries a fingerprint that no stage has, so training reads the shard, and the stage that
wrote it makes it again when it is run again.

Killed at any moment and started again, it ends in the same place: a reason is written before its
tar is moved, a tar is moved before its manifest, and the catalog comes last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from sharding.format import catalog as catalogs
from sharding.format.catalog import Catalog, ShardEntry, read_catalog, read_shapes, write_catalog
from sharding.format.key_digests import KeyDigests
from sharding.format.manifest import (
    Manifest,
    manifest_bytes,
    manifest_path,
    manifest_sha256,
    read_manifest,
)
from sharding.format.schema import OBJECTS, Failure, ShardError
from sharding.tools.index import index_tar
from sharding.tools.verify import verify_shard
from sharding.writing.atomic import remove_stale, sync_folder, write_bytes, write_text

FINGERPRINT = {"repair": "repair/1"}
QUARANTINE = "quarantine"
ACTIONS = ("left", "rebuilt", "quarantined", "missing")
UNNAMED = Failure(key="", reason="its key and reason were lost with the shard's manifest")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a shard (or would, in a dry run).

    tar: its file name. action: one of ACTIONS. reason: why; "" for a shard that is left.
    split: under which the catalog has it from now on, None if it does not.
    num_samples: that can be read from it. num_lost: that the catalog counted and that cannot be
    read. num_unnamed: failures whose keys and reasons were in the lost manifest alone.
    """

    tar: str
    action: str
    reason: str = ""
    split: str | None = None
    num_samples: int = 0
    num_lost: int = 0
    num_unnamed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a folder: a finding a shard, by name, and a sentence about catalog.json."""

    folder: Path
    dry_run: bool
    findings: tuple[Finding, ...]
    catalog: str

    def num(self, action: str) -> int:
        """How many shards had `action`."""
        return sum(finding.action == action for finding in self.findings)


def repair(
    folder: str | Path,
    *,
    dry_run: bool = False,
    on_shard: Callable[[int, int], None] = lambda num_done, num_shards: None,
) -> Report:
    """Repairs `folder`, while no stage writes to it; `dry_run` looks and changes nothing.

    on_shard: called after each shard with the numbers checked and in all.

    Raises ShardError if there is nothing to repair or another repair is running.
    """
    folder = Path(folder)
    descriptor = _hold(folder)
    try:
        catalog, trouble = _catalog_of(folder)
        entries = {shard.tar: shard for shard in catalog.shards} if catalog else {}
        names = sorted(_present(folder) | entries.keys())
        if not names:
            raise ShardError(f"{folder}: got no shards, expected a folder of tars")
        findings: dict[str, Finding] = {}
        keys = KeyDigests[str]()
        for num_done, name in enumerate(names, start=1):
            findings[name], manifest = _look(folder / name, catalog, entries.get(name))
            if manifest is not None:
                keys.add(name, (entry.key for entry in manifest.samples))
            if not dry_run:
                _act(folder / name, findings[name], manifest)
            on_shard(num_done, len(names))
        for name, reason in _duplicates(keys, listed=entries.keys()).items():
            lost = entries[name].num_ok if name in entries else 0
            findings[name] = Finding(tar=name, action="quarantined", reason=reason, num_lost=lost)
            if not dry_run:
                _act(folder / name, findings[name], None)
        if catalog is not None:
            trouble = _renew_catalog(folder, catalog, findings, dry_run=dry_run)
        found = tuple(findings.values())
        return Report(folder=folder, dry_run=dry_run, findings=found, catalog=trouble)
    finally:
        os.close(descriptor)


def _hold(folder: Path) -> int:
    """A descriptor of the folder, locked against another repair until it is closed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ShardError(f"{folder}: got {error.strerror}, expected a folder of shards") from error
    # A file system without locks lets two in, who may make each other fail but lose nothing.
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ShardError(f"{folder}: got another repair at work, expected none") from error
    return descriptor


def _catalog_of(folder: Path) -> tuple[Catalog | None, str]:
    """The catalog, or why there is none."""
    try:
        return read_catalog(folder), ""
    except ShardError as error:
        return None, f"{error}. None was written, for nothing else has the metadata of the set."


def _present(folder: Path) -> set[str]:
    """Names of the tars that are there, or whose manifests are."""
    tars = {path.name for path in folder.glob("*.tar")}
    return tars | {path.name.removesuffix(".json") for path in folder.glob("*.tar.json")}


def _look(
    tar: Path, catalog: Catalog | None, entry: ShardEntry | None
) -> tuple[Finding, Manifest | None]:
    """What is to become of a shard, and the manifest that it has or gets; nothing is changed."""
    finding = Finding(tar=tar.name, action="quarantined", num_lost=entry.num_ok if entry else 0)
    if not tar.is_file():
        action = "quarantined" if manifest_path(tar).is_file() else "missing"
        return replace(finding, action=action, reason="the tar is gone"), None
    faults = verify_shard(tar, full=True)
    causes = [f"{fault.key}: {fault.cause}" if fault.key else fault.cause for fault in faults[:3]]
    try:
        manifest = _rebuilt(tar, entry) if faults else read_manifest(tar)
    except ShardError as error:
        return replace(finding, reason=_reason(tar, [*causes, str(error)])), None
    return Finding(
        tar=tar.name,
        action="rebuilt" if faults else "left",
        reason=_reason(tar, causes),
        split=_split(manifest, catalog, entry),
        num_samples=manifest.num_ok,
        num_unnamed=manifest.failures.count(UNNAMED),
    ), manifest


def _reason(tar: Path, causes: Sequence[str]) -> str:
    """The distinct causes in one line, without folder and tar."""
    reported: list[str] = []
    for cause in causes:
        cause = cause.replace(f"{tar.parent}/", "").removeprefix(f"{tar.name}: ")
        if not any(cause in before for before in reported):
            reported.append(cause)
    return "; ".join(reported)


def _rebuilt(tar: Path, entry: ShardEntry | None) -> Manifest:
    """A new manifest for a tar whose own is not to be believed; ShardError if the tar is not."""
    manifest = index_tar(tar, fingerprint=FINGERPRINT)
    num_failed = entry.num_failed if entry else 0
    try:
        old = read_manifest(tar)
    except ShardError:
        old = None
    if old is not None and _places(old) == _places(manifest):
        raise ShardError("the tar has the members of its manifest, but other bytes")
    if old is not None and entry is not None and manifest_sha256(tar) == entry.manifest_sha256:
        raise ShardError(f"{catalogs.NAME} knows the manifest, so the tar is not the right one")
    if entry is not None and (manifest.tar_bytes, manifest.num_ok) != (entry.bytes, entry.num_ok):
        raise ShardError(
            f"got {manifest.tar_bytes} bytes and {manifest.num_ok} samples, expected "
            f"{entry.bytes} and {entry.num_ok} as in {catalogs.NAME}"
        )
    if len({OBJECTS in sample.members for sample in manifest.samples}) > 1:
        raise ShardError("some samples have objects and others have none")
    if manifest.num_failed == 0:
        return replace(manifest, failures=num_failed * (UNNAMED,))
    if manifest.num_failed != num_failed:
        first = manifest.failures[0]
        raise ShardError(
            f"{first.key}: {first.reason}; got {manifest.num_failed} broken samples in the tar, "
            f"expected {num_failed}; if others wrote it, run boxless index"
        )
    return manifest


def _places(manifest: Manifest) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    return [(entry.key, entry.members) for entry in manifest.samples]


def _split(manifest: Manifest, catalog: Catalog | None, entry: ShardEntry | None) -> str | None:
    """The split under which the catalog may list a valid shard: its old one, else by its name."""
    if catalog is None:
        return None
    wanted = catalog.kind == "objects"
    if any((OBJECTS in sample.members) != wanted for sample in manifest.samples):
        return None
    if entry is not None:
        return entry.split
    split = manifest.tar.rpartition("-")[0]
    return split if split in {shard.split for shard in catalog.shards} else None


def _act(tar: Path, finding: Finding, manifest: Manifest | None) -> None:
    """Does what was found."""
    if finding.action == "quarantined":
        _quarantine([tar, manifest_path(tar)], finding.reason)
    elif finding.action == "rebuilt":
        assert manifest is not None
        remove_stale(tar.parent, {manifest_path(tar).name})
        _quarantine([manifest_path(tar)], f"not the manifest of its tar: {finding.reason}")
        write_bytes(manifest_path(tar), manifest_bytes(manifest))


def _quarantine(paths: Sequence[Path], reason: str) -> None:
    """Moves those of a shard's files that are there, in this order, and says why beside them.

    Nothing is replaced: what is in quarantine under a name already makes the name get a number.
    """
    there = [path for path in paths if path.exists()]
    if not there:
        return
    folder = there[0].parent / QUARANTINE
    folder.mkdir(exist_ok=True)
    for number in count(1):
        suffix = "" if number == 1 else f".{number}"
        new = [folder / (path.name + suffix) for path in there]
        if not any(path.exists() for path in new):
            break
    tar = folder / f"{paths[0].name}{suffix}"
    # A manifest that joins its tar: a repair was killed between them, and has said why.
    if not tar.exists():
        remove_stale(folder, {f"{tar.name}.reason.txt"})
        write_text(folder / f"{tar.name}.reason.txt", f"{reason}\n")
    for path, target in zip(there, new):
        os.rename(path, target)
        sync_folder(folder)
        sync_folder(path.parent)


def _duplicates(keys: KeyDigests[str], *, listed: Collection[str]) -> dict[str, str]:
    """{tar: reason} of shards that repeat a key of a shard that stays: those that the catalog lists
    come before those that it does not, and then the first by name."""
    keys_of: dict[str, list[int]] = {}
    for key, places in enumerate(keys.repeated()):
        for tar, _ in places:
            keys_of.setdefault(tar, []).append(key)
    duplicates: dict[str, str] = {}
    tar_of: dict[int, str] = {}
    for tar in sorted(keys_of, key=lambda tar: (tar not in listed, tar)):
        shared = [key for key in keys_of[tar] if key in tar_of]
        if shared:
            others = sorted({tar_of[key] for key in shared})
            duplicates[tar] = f"{len(shared)} keys of it are in {', '.join(others)} as well"
        else:
            tar_of.update(dict.fromkeys(keys_of[tar], tar))
    return duplicates


def _renew_catalog(
    folder: Path, catalog: Catalog, findings: Mapping[str, Finding], *, dry_run: bool
) -> str:
    """Writes the catalog of the remaining shards if it differs; returns what was done."""
    splits = {tar: f.split for tar, f in findings.items() if f.split is not None}
    changed = (
        splits != {shard.tar: shard.split for shard in catalog.shards}
        or any(
            findings[shard.tar].action == "rebuilt"
            or manifest_sha256(folder / shard.tar) != shard.manifest_sha256
            for shard in catalog.shards
        )
        or not _has_shapes(folder, catalog)
    )
    if not changed:
        return ""
    num_samples = sum(findings[tar].num_samples for tar in splits)
    sentence = (
        f"{catalogs.NAME} lists {len(splits)} shards with {num_samples} samples; it listed "
        f"{len(catalog.shards)} with {sum(shard.num_ok for shard in catalog.shards)}."
    )
    if not dry_run:
        old = (folder / catalogs.NAME).read_bytes()
        _keep(folder / QUARANTINE / catalogs.NAME, old)
        write_catalog(folder, kind=catalog.kind, splits=splits, metadata=catalog.metadata)
    return sentence


def _has_shapes(folder: Path, catalog: Catalog) -> bool:
    """Whether the file of all shapes is there if the catalog names one."""
    try:
        read_shapes(folder, catalog)
        return True
    except ShardError:
        return False


def _keep(path: Path, data: bytes) -> None:
    """Writes `data` to the first of path, path.2, path.3, ... that is free or holds it already."""
    for number in count(1):
        slot = path if number == 1 else path.with_name(f"{path.name}.{number}")
        if not slot.exists():
            remove_stale(slot.parent, {slot.name})
            return write_bytes(slot, data)
        if slot.read_bytes() == data:
            return


def lines(report: Report) -> list[str]:
    """What was done and what to do next, for people."""
    could = "would be " if report.dry_run else ""
    text = [
        f"{report.folder}: {report.num('left')} shards intact, {report.num('rebuilt')} {could}given "
        f"a new manifest, {report.num('quarantined')} {could}moved to {QUARANTINE}/, "
        f"{report.num('missing')} missing."
    ]
    changed = [finding for finding in report.findings if finding.action != "left"]
    text += [f"  {finding.action} {finding.tar}: {finding.reason}" for finding in changed]
    if unlisted := [f.tar for f in report.findings if f.num_samples and f.split is None]:
        text.append(f"  not in a catalog: {', '.join(unlisted)}")
    if num_unnamed := sum(finding.num_unnamed for finding in report.findings):
        text.append(f"  {num_unnamed} failures are known by their number alone.")
    if report.catalog:
        text.append(f"  {report.catalog}")
    if changed or report.catalog:
        num_lost = sum(finding.num_lost for finding in report.findings)
        text.append(
            f"Next: run the stage that wrote the folder again. It writes {len(changed)} shards again "
            f"and leaves the others. Until then {num_lost} samples are out of reach. Tars that "
            "others wrote have to come from there again; then run boxless index."
        )
    return text
