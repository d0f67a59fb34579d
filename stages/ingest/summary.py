"""Prints the summary of an ingest: samples, failures and notes, by reason."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharding.format.manifest_summary import ManifestSummary
from sharding.format.schema import Failure, Note
from stages.ingest.sources.source import DroppedRecords

EXAMPLE_CHARACTERS = 70


def print_summary(
    shards: Sequence[tuple[str, ManifestSummary]], *, dropped: DroppedRecords | None = None
) -> None:
    """Print input = ok + failed for (split, head of manifest) pairs, then reasons and notes, and
    what belongs to no picture."""
    console = Console(highlight=False)
    table = Table("split", title="ingest", title_justify="left")
    for name in ("shards", "input", "ok", "failed"):
        table.add_column(name, justify="right")
    has_test = any(split == "test" for split, _ in shards)
    for split in ("train", "heldout", *(("test",) if has_test else ()), "total"):
        heads = [head for name, head in shards if split in (name, "total")]
        counts = [
            len(heads),
            sum(head.num_input for head in heads),
            sum(head.num_ok for head in heads),
            sum(head.num_failed for head in heads),
        ]
        table.add_row(split, *map(str, counts))
    console.print(table)
    _print_reasons(console, "failed inputs", [f for _, m in shards for f in m.failures])
    _print_reasons(console, "dropped from samples", [n for _, m in shards for n in m.notes])
    if dropped:
        _print_dropped(console, dropped)
    if not any(m.num_ok for split, m in shards if split == "heldout"):
        console.print("warning: nothing is held out, so there is nothing to evaluate on")


def _print_dropped(console: Console, dropped: DroppedRecords) -> None:
    """A row a reason, with the first few records of each."""
    table = Table("reason", title="dropped, of no picture", title_justify="left")
    table.add_column("count", justify="right")
    table.add_column("examples")
    for reason, count in sorted(dropped.items()):
        named = [example[:EXAMPLE_CHARACTERS] for example in dropped.examples[reason]]
        table.add_row(Text(reason), str(count), Text("\n".join(named)))
    console.print(table)


def _print_reasons(console: Console, title: str, findings: Iterable[Failure | Note]) -> None:
    """A row a kind of reason (the text before the colon), the most frequent first."""
    by_kind: dict[str, list[Failure | Note]] = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding.reason.partition(":")[0]].append(finding)
    if not by_kind:
        return
    table = Table("reason", title=title, title_justify="left")
    table.add_column("count", justify="right")
    table.add_column("example")
    for kind, found in sorted(by_kind.items(), key=lambda item: (-len(item[1]), item[0])):
        detail = found[0].reason.partition(":")[2].strip()
        example = f"{found[0].key}: {detail}" if detail else found[0].key
        # Text, not str: names and captions may hold what rich takes for markup.
        table.add_row(Text(kind), str(len(found)), Text(example[:EXAMPLE_CHARACTERS]))
    console.print(table)
