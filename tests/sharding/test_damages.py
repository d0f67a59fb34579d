"""Each damage of benchmarks.sharding.damages is found by ours, with shard, key and cause."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks.sharding.damaged_shards import DAMAGED, DAMAGES, NEXT, Damage
from benchmarks.sharding.damages import look
from sharding.tools.verify import Fault

KEY = "picture-009"  # the fourth sample of the damaged shard
SHARD = tuple(f"picture-{number:03d}" for number in range(6, 12))
SIZE = "cut short or replaced"


@dataclass(frozen=True)
class Expected:
    """Which look finds a damage, and what they say; of 18 samples `num_right` still come right.

    full, stream: (key, part of the cause) of some fault of the damaged shard. keys: those of all
    the faults of training. said: part of what the watch says. others: further damaged shards.
    """

    fast: bool = False
    full: tuple[str | None, str] | None = None
    stream: tuple[str | None, str] | None = None
    keys: tuple[str | None, ...] = ()
    num_right: int = 18
    repair: str = "quarantined"
    refused: str = ""
    said: str = ""
    others: tuple[str, ...] = ()


CUT = Expected(
    fast=True,
    full=(None, "cut between two members"),
    stream=(KEY, SIZE),
    keys=SHARD,
    num_right=12,
    refused="another size",
)
FLIPPED = Expected(full=(KEY, "CRC-32"), stream=(KEY, "CRC-32"), keys=(KEY,), num_right=17)
LATE = Expected(repair="", said=f"in read of {DAMAGED} (key ")
EXPECTED = {
    "cut at a member boundary": CUT,
    "cut between the members of a sample": CUT,
    "cut inside data, the next shard begins with the same key": Expected(
        fast=True,
        full=(None, "cut inside its data"),
        stream=(KEY, SIZE),
        num_right=6,
        keys=(*SHARD, *(f"picture-{number:03d}" for number in range(12, 18))),
        refused="another size",
        others=(NEXT,),
    ),
    # Training does not miss the header: the manifest says where everything is.
    "a header destroyed": Expected(full=(KEY, "header")),
    "one bit flipped in a picture": FLIPPED,
    "one bit flipped in a json": FLIPPED,
    "one bit flipped in objects": FLIPPED,
    "manifest missing": Expected(
        fast=True,
        full=(None, "no manifest"),
        stream=(None, "expected the shard's manifest"),
        keys=(None,),
        num_right=12,
        repair="rebuilt",
        refused="no manifest",
    ),
    "manifest of an older tar": Expected(
        fast=True,
        full=(None, "not the one of the manifest"),
        stream=(KEY, SIZE),
        keys=SHARD,
        num_right=12,
        refused="another size",
    ),
    "manifest newer than its tar, of the same size": Expected(
        full=(KEY, "CRC-32"), stream=(KEY, "CRC-32"), keys=SHARD, num_right=12
    ),
    # A catalog of it cannot be written, so training does not look for it.
    "the same key in two shards": Expected(
        fast=True, full=("picture-000", "train-000000.tar"), num_right=17, refused="picture-000"
    ),
    "a shard deleted while it is read": Expected(
        fast=True,
        full=(None, "No such file"),
        stream=(KEY, "No such file"),
        keys=SHARD,
        num_right=12,
        refused="missing",
    ),
    "the catalog lists a shard that is missing": Expected(
        fast=True,
        full=(None, "No such file"),
        stream=(None, "No such file"),
        keys=(None,),
        num_right=12,
        repair="missing",
        refused="no manifest",
    ),
    "garbage behind the end of a tar": Expected(
        fast=True,
        full=(None, "behind the end mark"),
        stream=(KEY, SIZE),
        keys=SHARD,
        num_right=12,
        refused="another size",
    ),
    "a store that stalls": LATE,
    "a store that is slow": LATE,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_every_damage_is_met_and_named(damage: Damage) -> None:
    """Oracle: the table above; what training gives is right, and the rest of the set all there."""
    expected, ours = EXPECTED[damage.name], look(damage)
    damaged = {DAMAGED, *expected.others} if expected.repair else set()
    assert bool(ours.fast) == expected.fast
    for faults, said in ((ours.full, expected.full), (ours.stream, expected.stream)):
        assert bool(faults) == (said is not None)
        assert said is None or _has(faults, *said), faults
        assert {fault.tar.rpartition("/")[2] for fault in faults} <= damaged
    assert {fault.key for fault in ours.stream} == set(expected.keys)
    assert ours.num_right == expected.num_right
    assert ours.repair == [f"{expected.repair} {tar}" for tar in sorted(damaged)]
    assert (expected.refused in ours.refused) if expected.refused else not ours.refused
    assert expected.said in "".join(ours.said)


def _has(faults: list[Fault], key: str | None, cause: str) -> bool:
    return any(
        fault.tar.endswith(DAMAGED) and fault.key == key and cause in fault.cause
        for fault in faults
    )


def test_every_damage_is_expected_something_of() -> None:
    """Oracle: the names."""
    assert [damage.name for damage in DAMAGES] == list(EXPECTED)
