"""What stock webdataset and Boxless do with damaged shards: a table, made by running both.

    python -m benchmarks.sharding.damages [--markdown]

For each damage a small set of three shards is made and damaged
(benchmarks.sharding.damaged_shards). Stock webdataset reads it twice, with decode(): with
handler=reraise_exception, then with ignore_and_continue (warn_and_continue does the same, half a
second later). Ours looks at it with `verify`, fast and full, reads it as training does when it
leaves out what is damaged (a strict reader raises the first of these faults), ends as a stage does
with a new catalog, and asks `repair` what it would do. A sample is right if all its bytes are those
of the undamaged set.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from benchmarks.sharding.damaged_shards import (
    DAMAGES,
    GO,
    NUM_SAMPLES,
    NUM_SHARDS,
    Damage,
    Samples,
    make_set,
    register_file_systems,
    truth_of,
)
from sharding.format.catalog import read_catalog, write_catalog
from sharding.format.schema import JSON, OBJECTS, Sample, ShardError, encode_objects
from sharding.reading.stream import DatasetSource, ShardStream
from sharding.reading.watchdog import StallWatch
from sharding.tools.repair import repair
from sharding.tools.verify import Fault, verify_paths
from sharding.writing.atomic import canonical_json

STALL_SECONDS = 0.55  # until the watchdog reports; recipes have a minute
PATIENCE_SECONDS = 1.5  # of waiting for stock webdataset


@dataclass(frozen=True)
class Ours:
    """What ours finds in a damaged set.

    refused: why write_catalog, with which every stage ends, refuses to list it; "" if it does not.
    fast, full: faults by verify. stream: faults by training's reader. num_right: the right samples
    that it gave. said: by the watch over stalls. repair: what it would do to which shard.
    """

    refused: str
    fast: list[Fault]
    full: list[Fault]
    stream: list[Fault]
    num_right: int
    said: list[str]
    repair: list[str]


@contextmanager
def damaged_set(damage: Damage, *, now: bool = True) -> Iterator[tuple[Path, Samples]]:
    """A folder of shards, damaged unless that comes later, and what the samples were before."""
    with tempfile.TemporaryDirectory(prefix="boxless-damage-") as made:
        folder = Path(made)
        make_set(folder)
        truth = truth_of(folder)
        if now:
            damage.do(folder)
        yield folder, truth


def look(damage: Damage) -> Ours:
    """What verify, training and repair make of a damage."""
    register_file_systems()
    with damaged_set(damage) as (folder, _):
        fast, full = (verify_paths([folder], full=full) for full in (False, True))
        repaired = [
            f"{finding.action} {finding.tar}"
            for finding in repair(folder, dry_run=True).findings
            if finding.action != "left"
        ]
        refused = _refused(folder)
    with damaged_set(damage, now=not damage.during) as (folder, truth):
        faults, num_right, said = _train(folder, damage, truth)
    return Ours(refused, fast, full, faults, num_right, said, repaired)


def _refused(folder: Path) -> str:
    catalog = read_catalog(folder)
    splits = {shard.tar: shard.split for shard in catalog.shards}
    try:
        write_catalog(folder, kind=catalog.kind, splits=splits, metadata=catalog.metadata)
        return ""
    except ShardError as error:
        return _brief(str(error))


def _train(folder: Path, damage: Damage, truth: Samples) -> tuple[list[Fault], int, list[str]]:
    """Faults, the number of right samples, and what the watch said, over one epoch."""
    place = f"{damage.far[0]}://{folder}" if damage.far else folder
    said: list[str] = []

    def log(text: str) -> None:
        said.append(text)
        (folder / GO).touch()

    stream = ShardStream(
        [DatasetSource(place)], seed=0, micro_batch_size=3, window_num_shards=1, shape_step_px=64
    )
    faults: list[Fault] = []
    num_right = 0
    with StallWatch(stream.board, after_seconds=STALL_SECONDS, log=log) as watch:
        for reading in watch.watched(map(stream.read, range(stream.num_micro_batches))):
            faults += reading.faults
            num_right += sum(_members(sample) == truth[sample.key] for sample in reading.samples)
            if damage.during and reading.position == 0:
                damage.do(folder)
    return faults, num_right, said


def _members(sample: Sample) -> dict[str, bytes]:
    """The members that a sample was read from."""
    assert sample.objects is not None
    return {
        sample.extension: sample.image,
        JSON: canonical_json(sample.info),
        OBJECTS: encode_objects(sample.objects),
    }


def read_stock(damage: Damage, handler: Callable[[Exception], bool]) -> str:
    """What stock webdataset gives and says, reading the shards of the catalog in their order."""
    got: list[tuple[str, dict[str, bytes]]] = []
    reported: list[str] = []
    with damaged_set(damage, now=not damage.during) as (folder, truth):
        urls = [str(folder / shard.tar) for shard in read_catalog(folder).shards]
        if damage.far:
            urls[1] = f"pipe:{damage.far[1].format(folder=folder)}; cat {urls[1]}"

        def read() -> None:
            source = webdataset.WebDataset(urls, shardshuffle=False, handler=handler)
            try:
                for sample in source.map(_with_raw).decode("pil", handler=handler):
                    got.append((sample["__key__"], sample["__raw__"]))
                    if damage.during and len(got) == 1:
                        damage.do(folder)
            # Whatever it raises is what is asked here.
            except Exception as error:
                reported.append(f"{type(error).__name__}: {_brief(str(error))}")

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(timeout=PATIENCE_SECONDS)
        if reader.is_alive():
            reported.append("waits, and says nothing")
        (folder / GO).touch()
        reader.join()
    return "; ".join([*(reported or ["no error"]), _compared(got, truth)])


def _with_raw(sample: dict[str, Any]) -> dict[str, Any]:
    raw = {name: data for name, data in sample.items() if not name.startswith("__")}
    return {**sample, "__raw__": raw}


def _compared(got: Sequence[tuple[str, dict[str, bytes]]], truth: Samples) -> str:
    """How many samples are right, and what is wrong with the others."""
    numbers = dict.fromkeys(
        ("right", "half", "made of two", "under another's key", "with changed bytes"), 0
    )
    for key, members in got:
        if members == truth[key]:
            numbers["right"] += 1
        elif members.keys() != truth[key].keys():
            numbers["half"] += 1
        elif members in truth.values():
            numbers["under another's key"] += 1
        elif all(
            any(payload == other[name] for other in truth.values())
            for name, payload in members.items()
        ):
            numbers["made of two"] += 1
        else:
            numbers["with changed bytes"] += 1
    numbers["lost"] = len(truth.keys() - {key for key, _ in got})
    reported = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
    return f"of {len(truth)} samples {reported}"


def reported(faults: Iterable[Fault]) -> list[str]:
    """Faults as lines, those of one shard and alike but for checksums together."""
    alike: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        alike[fault.tar, re.sub("[0-9a-f]{8,}", "", fault.cause)].append(fault)
    lines = []
    for together in alike.values():
        first = min(together, key=lambda fault: fault.key or "")
        name = Path(first.tar).name
        others = len({fault.key for fault in together}) - 1
        who = f"{name}, {first.key}" if first.key else name
        who += f" and {others} more" if others else ""
        lines.append(f"{who}: {_brief(first.cause).removeprefix(f'{name}: ')}")
    return lines


def _brief(cause: str) -> str:
    """The cause without folders, advice and the most of checksums."""
    cause = re.sub(r"[^\s'\"]*/boxless-damage-[^\s'\"/]*/?", "", cause)
    cause = re.sub(r"; (run|bring|let) [^;]*", "", cause)
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", cause).strip()


def lines(damage: Damage, ours: Ours, stock: Sequence[str]) -> list[str]:
    """Who makes what of a damage, for a terminal."""
    table = {
        "stock webdataset": stock,
        "write_catalog": [ours.refused] if ours.refused else [],
        "verify": reported(ours.fast),
        "verify --full": reported(ours.full),
        "training": [_right(ours), *reported(ours.stream), *ours.said[:1]],
        "repair": ours.repair,
    }
    return [
        damage.name,
        *(
            f"  {'' if number else name:18}{line}"
            for name, of_name in table.items()
            for number, line in enumerate(of_name or ["-"])
        ),
    ]


def row(damage: Damage, ours: Ours, stock: Sequence[str]) -> str:
    """The same for a document, with the first of what ours says."""
    found = {
        "write_catalog": ours.refused,
        "verify": ours.fast,
        "verify --full": ours.full,
        "training": ours.stream,
        "watch": ours.said,
    }
    says = [*reported(ours.stream), *reported(ours.full), *ours.said][:1]
    cells = [
        [damage.name],
        stock,
        [", ".join(name for name in found if found[name])],
        [*says, f"training: {_right(ours)}"],
        ours.repair,
    ]
    return f"| {' | '.join('<br>'.join(cell) for cell in cells)} |"


def _right(ours: Ours) -> str:
    return f"of {NUM_SHARDS * NUM_SAMPLES} samples {ours.num_right} right"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as a table for a document")
    options = parser.parse_args()
    if options.markdown:
        print("| damage | stock webdataset | found by | as ours says it | repair |")
        print("|---|---|---|---|---|")
    for damage in DAMAGES:
        ours = look(damage)
        raising = read_stock(damage, webdataset.reraise_exception)
        going_on = read_stock(damage, webdataset.ignore_and_continue)
        stock = (
            [raising] if raising == going_on else [f"raising: {raising}", f"going on: {going_on}"]
        )
        if options.markdown:
            print(row(damage, ours, stock), flush=True)
        else:
            print(*lines(damage, ours, stock), sep="\n", flush=True)


if __name__ == "__main__":
    main()
