"""The report's data section: how many pictures were read, how many failed, and why.

Reads the catalogs and manifests of both kinds of shards.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline.pages.html import Part, h, shortened
from pipeline.pages.sections import Section, count, missing, table
from pipeline.runner.run_folder import RunFolder
from sharding.format.catalog import Catalog, read_catalog
from sharding.format.manifest import read_manifest
from sharding.format.schema import ShardError

_MOST_REASONS = 12


def read_catalog_or_none(folder: Path) -> Catalog | None:
    """The catalog of a folder of shards; None while there is none."""
    try:
        return read_catalog(folder)
    except ShardError:
        return None


def data_section(run: RunFolder) -> Section:
    """Counts by split, and reasons; a note where there are no shards yet."""
    rows: list[list[Part]] = []
    details: list[Element] = []
    for title, folder in (("Images", run.images), ("Objects", run.objects)):
        catalog = read_catalog_or_none(folder)
        if catalog is None:
            details.append(missing(f"{title}: these shards are not finished yet."))
            continue
        rows += _rows(title, catalog)
        details += _reasons(title, folder, catalog)
    head = ("Shards", "Tars", "Size", "Pictures in", "Kept", "Failed")
    counts = [table("Counts of pictures by kind of shard and split", head, rows)] if rows else []
    return Section(name="data", title="Data", content=(*counts, *details))


def _rows(title: str, catalog: Catalog) -> list[list[Part]]:
    rows: list[list[Part]] = []
    for split in sorted({shard.split for shard in catalog.shards}, reverse=True):
        shards = catalog.of_split(split)
        rows.append(
            [
                f"{title}, {'held out' if split == 'heldout' else split}",
                count(len(shards)),
                f"{sum(shard.bytes for shard in shards) / 1e6:,.1f}\N{NO-BREAK SPACE}MB",
                count(sum(shard.num_input for shard in shards)),
                count(sum(shard.num_ok for shard in shards)),
                count(sum(shard.num_failed for shard in shards)),
            ]
        )
    return rows


def _reasons(title: str, folder: Path, catalog: Catalog) -> list[Element]:
    """Why pictures failed, and what was dropped inside of those that were kept."""
    failures: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    unread = 0
    for shard in catalog.shards:
        try:
            manifest = read_manifest(folder / shard.tar)
        except ShardError:
            unread += 1
            continue
        failures.update(failure.reason for failure in manifest.failures)
        notes.update(note.reason for note in manifest.notes)
    found = [
        _counts(f"{title}: why pictures failed", failures),
        _counts(f"{title}: what was dropped from pictures that were kept", notes),
        missing(f"{title}: {unread} manifests cannot be read.") if unread else None,
    ]
    return [element for element in found if element is not None]


def _counts(caption: str, reasons: Counter[str]) -> Element | None:
    """A table of reasons; a reason is the text before its colon where there are too many."""
    if not reasons:
        return None
    if len(reasons) > _MOST_REASONS:
        kinds: Counter[str] = Counter()
        for reason, number in reasons.items():
            kinds[reason.split(":")[0]] += number
        reasons = kinds
    shown = reasons.most_common(_MOST_REASONS)
    rows: list[list[Part]] = [[shortened(reason), count(number)] for reason, number in shown]
    if rest := reasons.total() - sum(number for _, number in shown):
        rows.append(["other reasons", count(rest)])
    return h("div", h("h3", caption), table(caption, ("Reason", "Times"), rows))
